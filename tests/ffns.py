"""A zoo of small feed-forward layers: every spelling that CATALOGUE saw in libraries or in hand-written models.

D = 32 model width, F = 64 hidden width, both multiples of every 2:4 format's alignment. `TAKEN` is rewritten whole,
`REFUSED` is not, for the reason given. All are plain nn.Modules that know nothing of s24compile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D, H = 32, 64
Act = Callable[[Tensor], Tensor]


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


# 2.1 Linear: formulas of (x, W, b); True where W is stored [in, out].


def _flattened(x, w, b):
    return F.linear(x.reshape(-1, x.shape[-1]), w, b).reshape(*x.shape[:-1], -1)


def _in_place_bias(x, w, b):
    y = F.linear(x, w)
    y += b
    return y


LINEARS: dict[str, tuple[Callable[..., Tensor], bool]] = {
    "functional": (F.linear, False),
    "keywords": (lambda x, w, b: F.linear(input=x, weight=w, bias=b), False),
    "addmm": (lambda x, w, b: torch.addmm(b, x.view(-1, x.shape[-1]), w).view(x.shape[0], x.shape[1], -1), True),
    "T_matmul": (lambda x, w, b: x @ w.T + b, False),
    "mT_matmul": (lambda x, w, b: torch.matmul(x, w.mT) + b, False),
    "t_matmul": (lambda x, w, b: b + x.matmul(w.t()), False),
    "transpose_matmul": (lambda x, w, b: torch.add(x @ w.transpose(0, 1), b), False),
    "permute_matmul": (lambda x, w, b: x @ w.permute(1, 0) + b, False),
    "in_out_matmul": (lambda x, w, b: x @ w + b, True),
    "in_out_linear": (lambda x, w, b: F.linear(x, w.t(), b), True),
    "late_bias": (lambda x, w, b: F.linear(x, w).add(b), False),
    "late_bias_in_place": (_in_place_bias, False),
    "flattened": (_flattened, False),
    "cast_weight": (lambda x, w, b: F.linear(x, w.to(x.dtype), b), False),
}

# 2.2 Activations.


def gelu_new(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def gelu_new_int(x):
    return x * 0.5 * (torch.tanh((x + (x**3) * 0.044715) * 0.7978845608) + 1)


def gelu_fast(x):
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def bloom_gelu_forward(x):
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


class BloomGelu(torch.autograd.Function):
    """Tanh GELU with its derivative written out, as in Bloom."""

    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return bloom_gelu_forward(input)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        t = torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
        slope = 0.5 * x * ((1 - t * t) * (0.79788456 + 0.1070322243 * x * x)) + 0.5 * (1 + t)
        return slope * grad


class StraightThroughGelu(torch.autograd.Function):
    """The same forward with a gradient of its own: must not be taken for GELU."""

    @staticmethod
    def forward(ctx, input):
        ctx.save_for_backward(input)
        return bloom_gelu_forward(input)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad + 0 * x


def _clamp_in_place(x):
    x.clamp_(min=0)
    return x


def relu_squared(x):
    r = F.relu(x)
    return r * r


ACTIVATIONS: dict[str, tuple[str, Act]] = {
    "gelu": ("gelu", F.gelu),
    "gelu_none": ("gelu", nn.GELU()),
    "gelu_erf": ("gelu", lambda x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))),
    "gelu_erf_mul": ("gelu", lambda x: (1 + torch.erf(0.70710678 * x)) * (0.5 * x)),
    "gelu_tanh": ("gelu_tanh", nn.GELU(approximate="tanh")),
    "gelu_new": ("gelu_tanh", gelu_new),
    "gelu_new_int": ("gelu_tanh", gelu_new_int),
    "gelu_fast": ("gelu_tanh", gelu_fast),
    "gelu_bloom": ("gelu_tanh", bloom_gelu_forward),
    "gelu_bloom_function": ("gelu_tanh", BloomGelu.apply),
    "quick_gelu": ("quick_gelu", lambda x: x * torch.sigmoid(1.702 * x)),
    "quick_gelu_turned": ("quick_gelu", lambda x: torch.sigmoid(x * 1.702) * x),
    "silu": ("silu", F.silu),
    "silu_module": ("silu", nn.SiLU()),
    "silu_in_place": ("silu", nn.SiLU(inplace=True)),
    "silu_product": ("silu", lambda x: x * torch.sigmoid(x)),
    "silu_turned": ("silu", lambda x: F.sigmoid(x) * x),
    "silu_method": ("silu", lambda x: x * x.sigmoid()),
    "silu_mul_in_place": ("silu", lambda x: x.mul_(x.sigmoid())),
    "relu": ("relu", F.relu),
    "relu_module": ("relu", nn.ReLU()),
    "relu_in_place": ("relu", nn.ReLU(inplace=True)),
    "relu_torch": ("relu", torch.relu),
    "relu_method": ("relu", lambda x: x.relu()),
    "relu_method_in_place": ("relu", lambda x: x.relu_()),
    "relu_function_in_place": ("relu", torch.relu_),
    "relu_clamp": ("relu", lambda x: x.clamp(min=0)),
    "relu_clamp_in_place": ("relu", _clamp_in_place),
    "relu_maximum": ("relu", lambda x: torch.maximum(x, torch.zeros_like(x))),
    "relu2": ("relu2", lambda x: torch.square(F.relu(x))),
    "relu2_method": ("relu2", lambda x: x.relu().square()),
    "relu2_operator": ("relu2", lambda x: F.relu(x) ** 2),
    "relu2_pow": ("relu2", lambda x: F.relu(x).pow(2)),
    "relu2_product": ("relu2", relu_squared),
}

# 2.3 Gates: how one projection is cut.


def _by_view(z):
    return z.view(*z.shape[:-1], 2, H).unbind(-2)


def _by_unflatten(z):
    parts = z.unflatten(-1, (2, H))
    return parts[..., 0, :], parts[..., 1, :]


SPLITS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "chunk": lambda z: z.chunk(2, dim=-1),
    "chunk_positional": lambda z: z.chunk(2, -1),
    "chunk_function": lambda z: torch.chunk(z, 2, dim=2),
    "split": lambda z: z.split(H, dim=-1),
    "split_sizes": lambda z: torch.split(z, [H, H], dim=-1),
    "tensor_split": lambda z: z.tensor_split(2, -1),
    "slices": lambda z: (z[..., : z.shape[-1] // 2], z[..., z.shape[-1] // 2 :]),
    "slices_full": lambda z: (z[:, :, :H], z[:, :, H:]),
    "narrow": lambda z: (z.narrow(-1, 0, H), z.narrow(-1, H, H)),
    "view_unbind": _by_view,
    "unflatten": _by_unflatten,
    "select": lambda z: (z.unflatten(-1, (2, H)).select(2, 0), z.unflatten(-1, (2, H)).select(2, 1)),
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "operator": lambda g, u: g * u,
    "turned": lambda g, u: u * g,
    "torch": torch.mul,
    "method": lambda g, u: g.mul(u),
    "in_place": lambda g, u: g.mul_(u),
    "in_place_up": lambda g, u: u.mul_(g),
}


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


class MlmHead(nn.Module):
    """BERT's MLM head: linear, gelu, layer_norm, linear. Not a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm, self.decoder = nn.Linear(D, H), nn.LayerNorm(H), nn.Linear(H, D)

    def forward(self, x):
        return self.decoder(self.norm(F.gelu(self.dense(x))))


class NormedSwiGlu(Gated):
    """timm SwiGLU with a norm between product and down projection."""

    def __init__(self) -> None:
        super().__init__(F.silu)
        self.norm = nn.LayerNorm(H)

    def forward(self, x):
        return self.down_proj(self.norm(F.silu(self.gate_proj(x)) * self.up_proj(x)))


class WatchedHidden(Plain):
    """An auxiliary loss reads the hidden activation."""

    def __init__(self) -> None:
        super().__init__(F.relu)

    def forward(self, x):
        h = F.relu(self.fc1(x))
        return self.fc2(h) + h.mean()


class CrossGated(Gated):
    """Gate and up projections of different inputs."""

    def __init__(self) -> None:
        super().__init__(F.silu)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x * 2.0))


class LoraMlp(Plain):
    """A low-rank adapter added to the first projection."""

    def __init__(self) -> None:
        super().__init__(F.gelu)
        self.A, self.B = nn.Linear(D, 4, bias=False), nn.Linear(4, H, bias=False)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x) + self.B(self.A(x))))


class ConvMlp(nn.Module):
    """timm's: 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv1d(D, H, 1), nn.Conv1d(H, D, 1)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x.transpose(1, 2)))).transpose(1, 2)


class WeightNormed(Plain):
    """weight_norm on both linears: the weight operand is computed."""

    def __init__(self) -> None:
        super().__init__(F.gelu)
        self.fc1 = torch.nn.utils.parametrizations.weight_norm(self.fc1)
        self.fc2 = torch.nn.utils.parametrizations.weight_norm(self.fc2)


class GluModule(nn.Module):
    """F.glu: gates with a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D, 2 * H), nn.Linear(H, D)

    def forward(self, x):
        return self.down(F.glu(self.up(x), -1))


class Experts(nn.Module):
    """Stacked expert weights, batched matmul."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, H, D) * 0.1)
        self.down = nn.Parameter(torch.randn(2, D, H) * 0.1)

    def forward(self, x):
        return torch.bmm(F.silu(torch.bmm(x, self.up.transpose(-2, -1))), self.down.transpose(-2, -1))


class HookedHidden(Plain):
    """A tensor hook on the hidden activation."""

    def __init__(self) -> None:
        super().__init__(F.gelu)

    def forward(self, x):
        h = F.gelu(self.fc1(x))
        if h.requires_grad:
            h.register_hook(_twice)
        return self.fc2(h)


def _twice(grad):
    return grad * 2


class ReusedAfterInPlace(Plain):
    """The mutated tensor is seen through a view made before."""

    def __init__(self) -> None:
        super().__init__(F.relu)

    def forward(self, x):
        h = self.fc1(x)
        seen = h.view(-1)
        h = h.relu_()
        return self.fc2(h) + seen.mean()


def _refused() -> dict[str, Layer]:
    zoo = {
        "mlm_head": Layer(MlmHead, "gelu", 0, "a layer_norm stands between"),
        "normed_swiglu": Layer(NormedSwiGlu, "silu", 0, "a layer_norm stands between"),
        "watched_hidden": Layer(WatchedHidden, "relu", 0, "is also used by `mean`"),
        "cross_gated": Layer(CrossGated, "swiglu", 0, "different inputs"),
        "lora": Layer(LoraMlp, "gelu", 0, "something is added to its projection before the activation"),
        "conv": Layer(ConvMlp, "relu", 0, "1x1 convolution"),
        "weight_norm": Layer(WeightNormed, "gelu", 0, "its weight is computed in the graph by `_weight_norm`"),
        "glu": Layer(GluModule, "unknown", 0, "F.glu, which gates with a sigmoid"),
        "experts": Layer(Experts, "experts", 0, "stacked in one 3-D parameter"),
        "hooked": Layer(HookedHidden, "gelu", 0, "register_hook"),
        "reused_after_in_place": Layer(ReusedAfterInPlace, "unknown", 0, "works in place on a tensor that is used"),
        "custom_gradient": Layer(lambda: Plain(StraightThroughGelu.apply), "unknown", 0, "autograd_function_apply"),
        "interleaved": Layer(
            lambda: Fused(lambda z: (z[..., ::2], z[..., 1::2]), lambda a, b: F.silu(a) * b), "swiglu", 0, "interleaved"
        ),
        "einsum": Layer(
            lambda: Plain(F.gelu, lambda i, o: Spelled(lambda x, w, b: torch.einsum("bsd,fd->bsf", x, w) + b, i, o)),
            "gelu", 0, "written with `einsum`",
        ),
        "tensordot": Layer(
            lambda: Plain(F.gelu, lambda i, o: Spelled(lambda x, w, b: torch.tensordot(x, w, dims=1) + b, i, o, True)),
            "gelu", 0, "written with `tensordot`",
        ),
    }  # fmt: skip
    foreign = {
        "leaky_relu": F.leaky_relu, "elu": F.elu, "hardswish": F.hardswish, "mish": F.mish, "softplus": F.softplus,
        "tanh": torch.tanh, "hardtanh": nn.ReLU6(),
    }  # fmt: skip
    for name, act in foreign.items():
        zoo[f"act_{name}"] = Layer(lambda a=act: Plain(a), "unknown", 0, "ReLU6" if name == "hardtanh" else name)
    wrong = {
        "gelu_wrong_constant": lambda x: 0.5 * x * (1.0 + torch.tanh(0.79 * (x + 0.044715 * torch.pow(x, 3.0)))),
        "swish_beta": lambda x: x * torch.sigmoid(1.5 * x),
    }
    for name, act in wrong.items():
        zoo[f"act_{name}"] = Layer(lambda a=act: Plain(a), "unknown", 0, "")
    return zoo


TAKEN = _taken()
REFUSED = _refused()
