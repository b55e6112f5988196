"""Layers that look like feed-forward layers and are not taken, each with the reason that the report must give."""

from __future__ import annotations

import importlib.util

import torch
import torch.nn.functional as F
from torch import nn

from tests.ffn_spellings import H, StraightThroughGelu
from tests.ffns import D, Fused, Gated, GatedBy, Layer, Plain, Spelled

HAS_HOOK_OP = importlib.util.find_spec("torch._higher_order_ops.register_hook") is not None


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


@torch.library.custom_op("s24_tests::own_activation", mutates_args=())
def own_activation(h: torch.Tensor) -> torch.Tensor:
    """An activation that no name gives away."""
    return h.relu()


@own_activation.register_fake
def _(h: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(h)


own_activation.register_autograd(lambda ctx, grad: grad)


class Snake(nn.Module):
    """h + sin(a h)^2 / a with a learned a."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(H))

    def forward(self, h):
        return h + (self.a * h).sin() ** 2 / self.a


class Attention(nn.Module):
    """Four projections, and what models put between them. No feed-forward layer."""

    def __init__(self, attend) -> None:
        super().__init__()
        self.q, self.k, self.v, self.g, self.o = (nn.Linear(D, D) for _ in range(5))
        self.attend = attend

    def forward(self, x):
        return self.o(self.attend(self.q(x), self.k(x), self.v(x), self.g(x)))


def _rotated(x):
    angles = torch.arange(x.shape[-2])[:, None] * torch.linspace(0, 1, x.shape[-1])
    return x * angles.cos() + x.flip(-1) * angles.sin()


NO_LAYER = {
    "attention": lambda: Attention(lambda q, k, v, g: F.scaled_dot_product_attention(q, k, v)),
    "gated_attention": lambda: Attention(lambda q, k, v, g: F.scaled_dot_product_attention(q, k, v) * torch.sigmoid(g)),
    "rotary_attention": lambda: Attention(
        lambda q, k, v, g: F.scaled_dot_product_attention(_rotated(q), _rotated(k), v)
    ),
    "linear_attention": lambda: Attention(lambda q, k, v, g: (F.elu(q) + 1) @ ((F.elu(k) + 1).transpose(-2, -1) @ v)),
    "softmax": lambda: Attention(lambda q, k, v, g: q.softmax(-1)),
    "scan": lambda: Attention(lambda q, k, v, g: torch.cumsum(q * k, 1) * torch.sigmoid(g)),
    "adapter": lambda: Attention(lambda q, k, v, g: 2.0 * q + k),
}
"""Modules with several linears and no layer among them: the report has no row for any."""


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
        # torch 2.11 captures a hook as an autograd.Function.
        "hooked": Layer(HookedHidden, "gelu", 0, "register_hook" if HAS_HOOK_OP else "autograd_function_apply"),
        "reused_after_in_place": Layer(ReusedAfterInPlace, "unknown", 0, "works in place on a tensor that is used"),
        "custom_op": Layer(lambda: Plain(own_activation), "unknown", 0, "`own_activation` stands between"),
        "snake": Layer(lambda: Plain(Snake()), "unknown", 0, "`sin` stands between its projections"),
        "sin_in_place": Layer(lambda: Plain(lambda h: h.sin_()), "unknown", 0, "`sin` stands between"),
        "squared_gelu": Layer(lambda: Plain(lambda h: F.gelu(h) ** 2), "unknown", 0, "`pow` stands between"),
        "bilinear": Layer(lambda: GatedBy(torch.mul), "unknown", 0, "`mul` joins its projections without an"),
        "summed_gate": Layer(lambda: GatedBy(lambda g, u: F.gelu(g) + u), "unknown", 0, "`add` joins its projections"),
        "sigmoid_gate": Layer(lambda: GatedBy(lambda g, u: g.sigmoid() * u), "unknown", 0, "`sigmoid` stands between"),
        "custom_gradient": Layer(
            lambda: Plain(lambda x: StraightThroughGelu.apply(x)), "unknown", 0, "autograd_function_apply"
        ),
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
        "tanh": torch.tanh, "hardtanh": nn.ReLU6(), "log_sigmoid": F.logsigmoid,
    }  # fmt: skip
    for name, act in foreign.items():
        zoo[f"act_{name}"] = Layer(lambda a=act: Plain(a), "unknown", 0, "ReLU6" if name == "hardtanh" else name)
    wrong = {
        "gelu_wrong_constant": lambda x: 0.5 * x * (1.0 + torch.tanh(0.79 * (x + 0.044715 * torch.pow(x, 3.0)))),
        "selu_alpha_dropout": lambda x: F.alpha_dropout(F.selu(x), 0.5, False),
        "swish_beta": lambda x: x * torch.sigmoid(1.5 * x),
    }
    for name, act in wrong.items():
        zoo[f"act_{name}"] = Layer(lambda a=act: Plain(a), "unknown", 0, "")
    return zoo


REFUSED = _refused()
