"""How libraries and people write a linear, an activation and a gate (docs/graphs.md), as plain functions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

H = 64
"""Hidden width of the zoo's layers."""
Act = Callable[[Tensor], Tensor]

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
    "type_as": (lambda x, w, b: F.linear(x, w.type_as(x), b), False),
    "type_as_turned": (lambda x, w, b: F.linear(x, w.T.type_as(x), b), True),
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
    "gelu_bloom_function": ("gelu_tanh", lambda x: BloomGelu.apply(x)),
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

SPELLED_OUT: dict[str, tuple[str, Act]] = {
    "gelu_products": (
        "gelu_tanh",
        lambda z: z * 0.5 * (1 + torch.tanh(0.7978845608028654 * (z + 0.044715 * z * z * z))),
    ),
    "gelu_half_last": ("gelu_tanh", lambda z: (torch.tanh((z + z**3 * 0.044715) * 0.79788456) + 1) * z / 2),
    "gelu_sum": ("gelu_tanh", lambda z: 0.5 * z + z * torch.tanh(0.797885 * z + 0.0356774081 * z.pow(3)) * 0.5),
    "gelu_sigmoid": ("gelu_tanh", lambda z: z * torch.sigmoid(1.5957691216 * (z + 0.044715 * z * z.square()))),
    "gelu_erf_sum": ("gelu", lambda z: 0.5 * z + 0.5 * z * torch.erf(z * 0.7071067811865475)),
    "gelu_erf_last": ("gelu", lambda z: z * (torch.erf(z / math.sqrt(2)) + 1.0) * 0.5),
    "gelu_erfc": ("gelu", lambda z: z * torch.erfc(-z * math.sqrt(0.5)) / 2),
    "gelu_cdf": ("gelu", lambda z: z * torch.special.ndtr(z)),
    "gelu_in_fp32": ("gelu", lambda z: F.gelu(z.float()).to(z.dtype)),
    "gelu_aten": ("gelu", lambda z: torch.ops.aten.gelu(z)),
    "silu_exp": ("silu", lambda z: z / (1 + torch.exp(-z))),
    "silu_reciprocal": ("silu", lambda z: (1 + (-z).exp()).reciprocal() * z),
    "silu_tanh": ("silu", lambda z: z * (0.5 * torch.tanh(z / 2) + 0.5)),
    "silu_expit": ("silu", lambda z: torch.special.expit(z).mul(z)),
    "silu_minus": ("silu", lambda z: z - z * torch.sigmoid(-z)),
    "silu_in_place_sigmoid": ("silu", lambda z: z * z.clone().sigmoid_()),
    "quick_gelu_div": ("quick_gelu", lambda z: z / (1 + torch.exp(-1.702 * z))),
    "relu_where": ("relu", lambda z: torch.where(z > 0, z, 0.0)),
    "relu_where_zeros": ("relu", lambda z: torch.where(z > 0, z, torch.zeros_like(z))),
    "relu_mask": ("relu", lambda z: z * (z > 0)),
    "relu_mask_cast": ("relu", lambda z: z * (z > 0).to(z.dtype)),
    "relu_threshold": ("relu", lambda z: F.threshold(z, 0.0, 0.0)),
    "relu_fill": ("relu", lambda z: z.masked_fill(z <= 0, 0.0)),
    "relu_fill_in_place": ("relu", lambda z: z.masked_fill_(z <= 0, 0.0)),
    "relu_hardtanh": ("relu", lambda z: F.hardtanh(z, 0.0, math.inf)),
    "relu_leaky": ("relu", lambda z: F.leaky_relu(z, 0.0)),
    "relu_twice": ("relu", lambda z: F.relu(F.relu(z))),
    "relu2_in_place": ("relu2", lambda z: z.relu_().square()),
    "relu2_clamp": ("relu2", lambda z: z.clamp(min=0) ** 2),
    "relu2_clamp_min": ("relu2", lambda z: z.clamp_min(0).pow(2.0)),
    "relu2_maximum": ("relu2", lambda z: torch.maximum(z, torch.tensor(0.0)).square()),
    "relu2_max": ("relu2", lambda z: torch.max(z, torch.zeros_like(z)) ** 2),
    "relu2_where": ("relu2", lambda z: torch.where(z > 0, z, 0) ** 2),
    "relu2_where_squared": ("relu2", lambda z: torch.where(z > 0, z * z, 0.0)),
    "relu2_module": ("relu2", lambda z: nn.ReLU()(z).square()),
    "relu2_by_itself": ("relu2", lambda z: z * F.relu(z)),
    "relu2_twice": ("relu2", lambda z: F.relu(z) * torch.relu(z)),
    "relu2_half": ("relu2", lambda z: (z + z.abs()) ** 2 / 4),
}
"""Orders and identities that no library is known to have, and that mean the same all the same."""
OTHER_SLOPES: dict[str, Act] = {
    "clamp": lambda z: z.clamp(min=0),
    "clamp_function": lambda z: torch.clamp(z, 0),
    "clip": lambda z: torch.clip(z, 0, None),
    "clamp_min": lambda z: z.clamp_min(0),
    "clamp_in_place": _clamp_in_place,
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "maximum_zero": lambda z: torch.maximum(torch.zeros((), device=z.device), z),
    "max": lambda z: z.max(z.new_zeros(())),
    "where_equal": lambda z: torch.where(z >= 0, z, 0.0),
    "mask_equal": lambda z: z * (z >= 0),
    "abs": lambda z: (z + z.abs()) / 2,
}
"""Spellings of relu whose gradient at exactly 0 is 1 or 1/2 in eager, where that of relu is 0."""
NEARLY: dict[str, Act] = {
    "silu_slope": lambda z: z * torch.sigmoid(1.5 * z),
    "quick_gelu_slope": lambda z: z * torch.sigmoid(1.7 * z),
    "gelu_constant": lambda z: 0.5 * z * (1 + torch.tanh(0.797 * (z + 0.044715 * z**3))),
    "gelu_cube": lambda z: 0.5 * z * (1 + torch.tanh(0.7978845608 * (z + 0.0447 * z**3))),
    "gelu_whole": lambda z: z * (1.5 + torch.tanh(0.7978845608 * (z + 0.044715 * z**3))),
    "hardswish": lambda z: z * F.relu6(z + 3) / 6,
    "relu_capped": lambda z: z.clamp(0, 1e4),
    "relu_shifted": lambda z: z.clamp(min=1e-3),
    "relu_leaky": lambda z: F.leaky_relu(z, 1e-3),
    "relu_negative": lambda z: -F.relu(-z),
    "relu_cubed": lambda z: F.relu(z) ** 3,
    "relu2_shifted": lambda z: F.relu(z) ** 2 - 0.5,
    "silu_rounded": lambda z: F.silu(z.to(torch.float8_e4m3fn).to(z.dtype)) * F.silu(z),
    "silu_no_slope": lambda z: z * torch.sigmoid(z.detach()),
    "softplus": lambda z: F.softplus(z),
    "random": lambda z: F.rrelu(z, training=True),
}
"""Activations that differ from every one that has a name, by value, slope, rounding or chance."""

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
GATES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "silu_last": ("swiglu", lambda g, u: u * g * torch.sigmoid(g)),
    "silu_first": ("swiglu", lambda g, u: torch.sigmoid(g) * u * g),
    "silu_division": ("swiglu", lambda g, u: g * u / (1 + torch.exp(-g))),
    "gelu_apart": ("geglu", lambda g, u: g * u * 0.5 * (1 + torch.erf(g / math.sqrt(2)))),
    "gelu_sum": ("geglu_tanh", lambda g, u: g * u / 2 + torch.tanh(0.79788456 * (g + 0.044715 * g**3)) * g * u / 2),
    "relu_mask": ("reglu", lambda g, u: (g > 0) * u * g),
    "relu_clamp": ("reglu", lambda g, u: u * g.clamp(min=0)),
    "relu2_apart": ("relu2_glu", lambda g, u: F.relu(g) * u * F.relu(g)),
    "quick_gelu_apart": ("quick_geglu", lambda g, u: (u * g) * torch.sigmoid(1.702 * g)),
}
"""act(gate) * up with the factors of the activation and the other half in any order."""
