"""Tensors [..., C] as the matrices that kernels read: T tokens, C features, F those of one half of a GLU."""

from __future__ import annotations

import math

from torch import Tensor


def plane(x: Tensor) -> tuple[Tensor, int, int]:
    """x [..., C] as [T, C] and its two strides; a view wherever the leading dims allow."""
    flat = x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1])  # not -1, which C = 0 leaves undecided
    return flat, flat.stride(0), flat.stride(1)


def halves(z: Tensor, gate: str) -> tuple[Tensor, int]:
    """(the half of z [T, 2F] that the activation sees, columns from it to the other)."""
    hidden = z.shape[1] // 2
    return (z[:, :hidden], hidden) if gate == "first" else (z[:, hidden:], -hidden)
