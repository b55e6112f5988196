"""Contracts of the ops that choose which two of four stay. Legend: w [m, n]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from s24compile.kernels import providers


@custom_op("s24::transposable_patterns", mutates_args=())
def transposable_patterns(w: Tensor) -> Tensor:
    """The number of the best of the 90 transposable patterns per 4x4 block: uint8 [m/4, n/4]."""
    return providers.run("transposable_patterns", w)


@transposable_patterns.register_fake
def _(w: Tensor) -> Tensor:
    return w.new_empty((w.shape[0] // 4, w.shape[1] // 4), dtype=torch.uint8)


@custom_op("s24::expand_patterns", mutates_args=())
def expand_patterns(patterns: Tensor, kind: str) -> Tensor:
    """Pattern numbers to the bool mask [m, n]; kind "transposable": [m/4, n/4], "rows": [m, n/4]."""
    return providers.run("expand_patterns", patterns, kind)


@expand_patterns.register_fake
def _(patterns: Tensor, kind: str) -> Tensor:
    rows = patterns.shape[0] * (4 if kind == "transposable" else 1)
    return patterns.new_empty((rows, patterns.shape[1] * 4), dtype=torch.bool)


@custom_op("s24::transposable_mask", mutates_args=())
def transposable_mask(w: Tensor) -> Tensor:
    """bool [m, n]: the transposable mask of largest L1 norm."""
    return providers.run("transposable_mask", w)


@custom_op("s24::magnitude_patterns", mutates_args=())
def magnitude_patterns(w: Tensor) -> Tensor:
    """Pair number of the two largest magnitudes of each four along the last dim: uint8 [..., n/4]."""
    return providers.run("magnitude_patterns", w)


@magnitude_patterns.register_fake
def _(w: Tensor) -> Tensor:
    return w.new_empty((*w.shape[:-1], w.shape[-1] // 4), dtype=torch.uint8)


@custom_op("s24::magnitude_mask", mutates_args=())
def magnitude_mask(w: Tensor) -> Tensor:
    """bool, w's shape: the two largest magnitudes of each four along the last dim."""
    return providers.run("magnitude_mask", w)


@transposable_mask.register_fake
@magnitude_mask.register_fake
def _mask(w: Tensor) -> Tensor:
    return w.new_empty(w.shape, dtype=torch.bool)


@custom_op("s24::soft_threshold", mutates_args=())
def soft_threshold(w: Tensor) -> Tensor:
    """S-STE's S(w), w's shape and dtype, contiguous. Backward: identity (straight-through)."""
    return providers.run("soft_threshold", w)


@soft_threshold.register_fake
def _(w: Tensor) -> Tensor:
    return w.new_empty(w.shape)


def _straight_through(ctx: Any, grad: Tensor) -> Tensor:
    return grad


soft_threshold.register_autograd(_straight_through)


@custom_op("s24::soft_threshold_scale", mutates_args=())
def soft_threshold_scale(w: Tensor) -> Tensor:
    """S-STE's beta = <W, S(W)> / <S(W), S(W)>, 0-d fp32."""
    return providers.run("soft_threshold_scale", w)


@soft_threshold_scale.register_fake
def _(w: Tensor) -> Tensor:
    return w.new_empty((), dtype=torch.float32)


@custom_op("s24::flip_rate", mutates_args=())
def flip_rate(before: Tensor, after: Tensor) -> Tensor:
    """The share of entries where two masks differ, 0-d fp32."""
    return providers.run("flip_rate", before, after)


@flip_rate.register_fake
def _(before: Tensor, after: Tensor) -> Tensor:
    return before.new_empty((), dtype=torch.float32)
