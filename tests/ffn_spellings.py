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
