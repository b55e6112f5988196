"""A zoo of small feed-forward layers: every spelling that CATALOGUE saw in libraries or in hand-written models.

D = 32 model width, H = 64 hidden width, both multiples of every 2:4 format's alignment. Each layer of `TAKEN` is
rewritten whole; `ffn_lookalikes.REFUSED` holds those that are not. They are plain nn.Modules that know nothing of s24.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tests.ffn_spellings import ACTIVATIONS, LINEARS, PRODUCTS, SPLITS, Act, H, gelu_new

D = 32


class Conv1D(nn.Module):
    """HF's: y = x W + b with W [in, out], through view, addmm, view."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.nf = n_out
        self.weight = nn.Parameter(torch.randn(n_in, n_out) / math.sqrt(n_in))
        self.bias = nn.Parameter(torch.randn(n_out) * 0.1)

    def forward(self, x):
        size_out = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class Spelled(nn.Module):
    """A linear written by hand: `formula(x, weight, bias)`."""

    def __init__(self, formula, n_in: int, n_out: int, transposed: bool = False) -> None:
        super().__init__()
        self.formula = formula
        self.weight = nn.Parameter(torch.randn((n_in, n_out) if transposed else (n_out, n_in)) / math.sqrt(n_in))
        self.bias = nn.Parameter(torch.randn(n_out) * 0.1)

    def forward(self, x):
        return self.formula(x, self.weight, self.bias)


class Plain(nn.Module):
    """linear - activation - linear."""

    def __init__(self, act: Act, linear: Callable[[int, int], nn.Module] = nn.Linear, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1, self.fc2 = linear(D, H), linear(H, D)
        self.act, self.drop = act, drop

    def forward(self, x):
        h = self.act(self.fc1(x))
        if self.drop:
            h = F.dropout(h, p=self.drop, training=self.training)
        return self.fc2(h)


class Gated(nn.Module):
    """act(gate) * up, two linears; `product` writes the product."""

    def __init__(self, act: Act, product=lambda g, u: g * u, bias=(False, False, False), both_first=False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(D, H, bias=bias[0])
        self.up_proj = nn.Linear(D, H, bias=bias[1])
        self.down_proj = nn.Linear(H, D, bias=bias[2])
        self.act, self.product, self.both_first = act, product, both_first

    def forward(self, x):
        if self.both_first:
            g, u = self.gate_proj(x), self.up_proj(x)
            return self.down_proj(self.product(self.act(g), u))
        return self.down_proj(self.product(self.act(self.gate_proj(x)), self.up_proj(x)))


class GatedBy(Gated):
    """Two linears whose results `gate` makes one of, by any formula."""

    def __init__(self, gate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(F.silu)
        self.gate = gate

    def forward(self, x):
        return self.down_proj(self.gate(self.gate_proj(x), self.up_proj(x)))


class Fused(nn.Module):
    """One linear for both halves; `split` cuts it, `product` joins them."""

    def __init__(self, split, product, bias: bool = True) -> None:
        super().__init__()
        self.Wi, self.Wo = nn.Linear(D, 2 * H, bias=bias), nn.Linear(H, D, bias=bias)
        self.split, self.product = split, product

    def forward(self, x):
        first, second = self.split(self.Wi(x))
        return self.Wo(self.product(first, second))


class Residual(nn.Module):
    """x + ffn(norm(x)), in a block: what stands around a layer in a model."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ln, self.mlp = nn.LayerNorm(D), ffn

    def forward(self, x):
        return x + self.mlp(self.ln(x))


@dataclasses.dataclass(frozen=True)
class Layer:
    """One entry of the zoo."""

    make: Callable[[], nn.Module]
    family: str
    linears: int = 2
    """Matmuls that are 2:4 after the rewrite."""
    reason: str = ""
    """For refused ones: what the report's sentence must contain."""


def _taken() -> dict[str, Layer]:
    zoo: dict[str, Layer] = {}
    for name, (formula, turned) in LINEARS.items():
        zoo[f"linear_{name}"] = Layer(
            lambda f=formula, t=turned: Plain(F.gelu, lambda i, o: Spelled(f, i, o, t)), "gelu"
        )
    zoo["linear_conv1d"] = Layer(lambda: Plain(gelu_new, Conv1D), "gelu_tanh")
    zoo["linear_no_bias"] = Layer(lambda: Plain(F.gelu, lambda i, o: nn.Linear(i, o, bias=False)), "gelu")
    for name, (family, act) in ACTIVATIONS.items():
        zoo[f"act_{name}"] = Layer(lambda a=act: Plain(a), family)
    for name, split in SPLITS.items():
        zoo[f"split_{name}"] = Layer(lambda s=split: Fused(s, lambda a, b: F.silu(a) * b), "swiglu")
    halves = {"a0b": lambda a, b: F.gelu(a) * b, "b0a": lambda a, b: b * F.gelu(a),
              "ab1": lambda a, b: a * F.gelu(b), "b1a": lambda a, b: F.gelu(b) * a}  # fmt: skip
    for name, product in halves.items():
        zoo[f"halves_{name}"] = Layer(lambda p=product: Fused(lambda z: z.chunk(2, dim=-1), p), "geglu")
    for name, product in PRODUCTS.items():
        zoo[f"product_{name}"] = Layer(lambda p=product: Gated(F.silu, p), "swiglu", 3)
        if name == "in_place_up":
            continue  # torch refuses to write into one of several views of a split
        zoo[f"product_fused_{name}"] = Layer(
            lambda p=product: Fused(lambda z: z.chunk(2, -1), lambda a, b: p(F.silu(a), b)), "swiglu"
        )
    zoo["gated_both_first"] = Layer(lambda: Gated(nn.SiLU(), both_first=True), "swiglu", 3)
    zoo["gated_biases"] = Layer(lambda: Gated(F.gelu, bias=(True, True, True)), "geglu", 3)
    zoo["gated_one_bias"] = Layer(lambda: Gated(F.relu, bias=(False, True, True)), "reglu", 3)
    zoo["gated_gelu_new"] = Layer(lambda: Gated(gelu_new), "geglu_tanh", 3)
    zoo["gated_quick_gelu"] = Layer(lambda: Gated(lambda x: x * torch.sigmoid(1.702 * x)), "quick_geglu", 3)
    zoo["gated_relu2"] = Layer(lambda: Gated(lambda x: F.relu(x).square()), "relu2_glu", 3)
    zoo["fused_quick_gelu"] = Layer(
        lambda: Fused(lambda z: z.chunk(2, -1), lambda a, b: b * (a * torch.sigmoid(1.702 * a))), "quick_geglu"
    )
    zoo["residual"] = Layer(lambda: Residual(Plain(F.gelu)), "gelu")
    zoo["residual_gated"] = Layer(lambda: Residual(Gated(F.silu)), "swiglu", 3)
    zoo["flat_whole"] = Layer(FlatWhole, "relu")
    zoo["views_between"] = Layer(ViewsBetween, "gelu")
    zoo["down_added_in_place"] = Layer(AddedInPlace, "gelu")
    zoo["encoder_layer"] = Layer(EncoderLayer, "relu")
    return zoo


class FlatWhole(Plain):
    """OPT: the whole layer runs on [T, D]."""

    def __init__(self) -> None:
        super().__init__(F.relu)

    def forward(self, x):
        return super().forward(x.reshape(-1, x.size(-1))).view(x.shape)


class ViewsBetween(Plain):
    """A hidden activation that is flattened and restored between the linears."""

    def __init__(self) -> None:
        super().__init__(F.gelu)

    def forward(self, x):
        h = F.gelu(self.fc1(x).flatten(0, 1))
        return self.fc2(h.view(x.shape[0], x.shape[1], -1).contiguous())


class AddedInPlace(Plain):
    """Falcon: the down projection's result is changed in place."""

    def __init__(self) -> None:
        super().__init__(F.gelu)

    def forward(self, x):
        y = super().forward(x)
        y += x
        return y


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer, whose feed-forward part has no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(D, 2, H, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.layer(x)


TAKEN = _taken()
