"""Gated linear units and their gradient, in fp32 arithmetic (fp64 for fp64). [Shazeer 2020; FST 5.2]

Legend: z [..., 2F], the two halves side by side; h [..., F].
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.activations import activation
from s24compile.kernels.rounding import widen


def _halves(z: Tensor, gate: str) -> tuple[Tensor, Tensor]:
    """(the half that the activation sees, the other), widened."""
    first, second = widen(z).chunk(2, dim=-1)
    return (first, second) if gate == "first" else (second, first)


def glu(z: Tensor, act: str, gate: str) -> Tensor:
    """h = act(gate half) * other half; contiguous [..., F] of z's dtype.

    Args:
        act: a name of `activations.ACTIVATIONS`.
        gate: which half the activation sees, "first" (the paper) or "second" (the toolkit).
    """
    gated, other = _halves(z, gate)
    return (activation(act).value(gated) * other).to(z.dtype).contiguous()


def glu_backward(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """dz [..., 2F] of z's dtype, contiguous, from dh [..., F] and the saved z; the activation is recomputed."""
    row, (gated, other) = activation(act), _halves(z, gate)
    wide = dh.to(gated.dtype)
    d_gated, d_other = wide * other * row.slope(gated), wide * row.value(gated)
    halves = (d_gated, d_other) if gate == "first" else (d_other, d_gated)
    return torch.cat(halves, dim=-1).to(z.dtype)


def act(z: Tensor, act: str) -> Tensor:
    """h = act(z), in z's dtype and layout."""
    return activation(act).value(widen(z)).to(z.dtype)


def act_backward(dh: Tensor, z: Tensor, act: str) -> Tensor:
    """dz = dh * act'(z), in z's dtype and layout."""
    wide = widen(z)
    return (activation(act).slope(wide) * dh.to(wide.dtype)).to(z.dtype)
