"""The activations, one row each: what they compute, and who takes them. A leaf.

A name that no row has is an error wherever an op is given it. A new activation is a row here; its Triton formulas are
in triton/activations.py, its CUTLASS function in gemm/cutlass/activations.cuh.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from s24compile.errors import OptionError

_TANH_SCALE, _TANH_CUBE = math.sqrt(2.0 / math.pi), 0.044715


@dataclasses.dataclass(frozen=True)
class Act:
    """One row. `value` and `slope` are elementwise, in the dtype of their argument: fp32 at least."""

    name: str
    formula: str
    """In words, of x."""
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    """The derivative."""
    gated: str
    """What a gated layer with it is called."""
    dense: bool = False
    """Whether the ops of dense hidden states take it: act, glu, and GEMMs with either as epilogue."""
    sparse: bool = False
    """Whether most of what it returns is 0, so that recipe "activation" and its ops take it."""
    triton: bool = False
    """Whether Triton's kernels know it."""
    cuda: str = ""
    """The type of gemm/cutlass/activations.cuh that computes it; empty: no epilogue does."""
    prebuilt: tuple[str, ...] = ()
    """Kinds of layers, "plain" and "gated", for which `s24 build` builds epilogues with it ahead of time."""


def _gelu_slope(x: Tensor) -> Tensor:
    """Phi(x) + x phi(x)."""
    return 0.5 * torch.erfc(x * -math.sqrt(0.5)) + x * torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _gelu_tanh_slope(x: Tensor) -> Tensor:
    tanh = torch.tanh(_TANH_SCALE * (x + _TANH_CUBE * x * x * x))
    inner = _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBE * x * x)
    return 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner


def _silu_slope(x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


def _relu_slope(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


def _relu2(x: Tensor) -> Tensor:
    r = functional.relu(x)
    return r * r


def _relu2_slope(x: Tensor) -> Tensor:
    return 2.0 * functional.relu(x)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _quick_gelu_slope(x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(1.702 * x)
    return sigmoid * (1.0 + 1.702 * x * (1.0 - sigmoid))


_ROWS = (
    Act("gelu", "x Phi(x), Phi the normal distribution", functional.gelu, _gelu_slope, "geglu",
        dense=True, triton=True, cuda="GeluErf", prebuilt=("plain", "gated")),
    Act("gelu_tanh", "x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2", _gelu_tanh, _gelu_tanh_slope, "geglu_tanh",
        dense=True, triton=True, cuda="GeluTanh", prebuilt=("plain",)),
    Act("silu", "x / (1 + exp(-x))", functional.silu, _silu_slope, "swiglu",
        dense=True, triton=True, cuda="Silu", prebuilt=("gated",)),
    Act("relu", "max(x, 0)", functional.relu, _relu_slope, "reglu",
        dense=True, sparse=True, triton=True, cuda="Relu"),
    Act("relu2", "max(x, 0)^2", _relu2, _relu2_slope, "relu2_glu", sparse=True),
    Act("quick_gelu", "x / (1 + exp(-1.702 x))", _quick_gelu, _quick_gelu_slope, "quick_geglu"),
)  # fmt: skip

ACTIVATIONS: dict[str, Act] = {row.name: row for row in _ROWS}
"""By name. Layers with the last two are found and stay pointwise unless another recipe takes them."""

DENSE = tuple(row.name for row in _ROWS if row.dense)
"""What act, glu and the epilogues take."""
SPARSE = tuple(row.name for row in _ROWS if row.sparse)
"""What the ops of sparse hidden states take."""


def activation(name: str) -> Act:
    """The row of an activation.

    Raises:
        OptionError: there is none of that name.
    """
    row = ACTIVATIONS.get(name)
    if row is None:
        accepted = "it must be one of " + ", ".join(map(repr, ACTIVATIONS))
        raise OptionError(name="act", value=name, accepted=accepted)
    return row
