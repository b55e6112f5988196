"""Gated linear units and their gradient, in fp32 arithmetic (fp64 for fp64). [Shazeer 2020; FST 5.2]

Legend: z [..., 2F], the two halves side by side; h [..., F].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from s24compile.kernels.rounding import widen

_TANH_SCALE, _TANH_CUBE = math.sqrt(2.0 / math.pi), 0.044715


def _activation(a: Tensor, act: str) -> Tensor:
    if act == "gelu":
        return functional.gelu(a)
    if act == "gelu_tanh":
        return functional.gelu(a, approximate="tanh")
    return functional.silu(a) if act == "silu" else functional.relu(a)


def _derivative(a: Tensor, act: str) -> Tensor:
    if act == "gelu":  # Phi(a) + a phi(a)
        return 0.5 * torch.erfc(a * -math.sqrt(0.5)) + a * torch.exp(-0.5 * a * a) / math.sqrt(2.0 * math.pi)
    if act == "gelu_tanh":
        tanh = torch.tanh(_TANH_SCALE * (a + _TANH_CUBE * a * a * a))
        slope = _TANH_SCALE * (1.0 + 3.0 * _TANH_CUBE * a * a)
        return 0.5 * (1.0 + tanh) + 0.5 * a * (1.0 - tanh * tanh) * slope
    if act == "silu":
        sigmoid = torch.sigmoid(a)
        return sigmoid * (1.0 + a * (1.0 - sigmoid))
    return (a > 0).to(a.dtype)


def _halves(z: Tensor, gate: str) -> tuple[Tensor, Tensor]:
    """(the half that the activation sees, the other), widened."""
    first, second = widen(z).chunk(2, dim=-1)
    return (first, second) if gate == "first" else (second, first)


def glu(z: Tensor, act: str, gate: str) -> Tensor:
    """h = act(gate half) * other half; contiguous [..., F] of z's dtype.

    Args:
        act: "gelu" (erf), "gelu_tanh", "silu" or "relu".
        gate: which half the activation sees, "first" (the paper) or "second" (the toolkit).
    """
    gated, other = _halves(z, gate)
    return (_activation(gated, act) * other).to(z.dtype).contiguous()


def glu_backward(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """dz [..., 2F] of z's dtype, contiguous, from dh [..., F] and the saved z; the activation is recomputed."""
    gated, other = _halves(z, gate)
    wide = dh.to(gated.dtype)
    d_gated, d_other = wide * other * _derivative(gated, act), wide * _activation(gated, act)
    halves = (d_gated, d_other) if gate == "first" else (d_other, d_gated)
    return torch.cat(halves, dim=-1).to(z.dtype)


def act(z: Tensor, act: str) -> Tensor:
    """h = act(z), in z's dtype and layout."""
    return _activation(widen(z), act).to(z.dtype)


def act_backward(dh: Tensor, z: Tensor, act: str) -> Tensor:
    """dz = dh * act'(z), in z's dtype and layout."""
    wide = widen(z)
    return (_derivative(wide, act) * dh.to(wide.dtype)).to(z.dtype)
