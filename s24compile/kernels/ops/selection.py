"""Contracts of the ops that choose which two of four stay. Legend: w [m, n]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s24compile.kernels.ops.contract import contract


@contract()
def transposable_patterns(w: Tensor) -> Tensor:
    """The number of the best of the 90 transposable patterns per 4x4 block: uint8 [m/4, n/4]."""
    return w.new_empty((w.shape[0] // 4, w.shape[1] // 4), dtype=torch.uint8)


@contract()
def expand_patterns(patterns: Tensor, kind: str) -> Tensor:
    """Pattern numbers to the bool mask [m, n]; kind "transposable": [m/4, n/4], "rows": [m, n/4]."""
    rows = patterns.shape[0] * (4 if kind == "transposable" else 1)
    return patterns.new_empty((rows, patterns.shape[1] * 4), dtype=torch.bool)


@contract()
def transposable_mask(w: Tensor) -> Tensor:
    """bool [m, n]: the transposable mask of largest L1 norm."""
    return w.new_empty(w.shape, dtype=torch.bool)


@contract()
def magnitude_patterns(w: Tensor) -> Tensor:
    """Pair number of the two largest magnitudes of each four along the last dim: uint8 [..., n/4]."""
    return w.new_empty((*w.shape[:-1], w.shape[-1] // 4), dtype=torch.uint8)


@contract()
def magnitude_mask(w: Tensor) -> Tensor:
    """bool, w's shape: the two largest magnitudes of each four along the last dim."""
    return w.new_empty(w.shape, dtype=torch.bool)


@contract()
def soft_threshold(w: Tensor) -> Tensor:
    """S-STE's S(w), w's shape and dtype, contiguous. Backward: identity (straight-through)."""
    return w.new_empty(w.shape)


def _straight_through(ctx: Any, grad: Tensor) -> Tensor:
    return grad


soft_threshold.register_autograd(_straight_through)


@contract()
def soft_threshold_scale(w: Tensor) -> Tensor:
    """S-STE's beta = <W, S(W)> / <S(W), S(W)>, 0-d fp32."""
    return w.new_empty((), dtype=torch.float32)


@contract()
def flip_rate(before: Tensor, after: Tensor) -> Tensor:
    """The share of entries where two masks differ, 0-d fp32."""
    return before.new_empty((), dtype=torch.float32)
