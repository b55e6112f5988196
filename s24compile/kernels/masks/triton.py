"""Triton kernels of mask search. Legend: w [m, n], blocks of 4x4."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.masks.reference import expand_patterns
from s24compile.kernels.pack.triton import pack_transposable, supported
from s24compile.kernels.providers import Provider


def _supports(w: Tensor) -> str | None:
    if w.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"reads fp32, bf16 and fp16 only, not {w.dtype}"
    return None


def transposable_patterns(w: Tensor) -> Tensor:
    """See masks/reference.py."""
    patterns = w.new_empty((w.shape[0] // 4, w.shape[1] // 4), dtype=torch.uint8)
    pack_transposable(w.detach(), patterns, None, None, "search")
    return patterns


def transposable_mask(w: Tensor) -> Tensor:
    """See masks/reference.py."""
    return expand_patterns(transposable_patterns(w), "transposable")


PROVIDERS = {
    "transposable_patterns": Provider("triton", transposable_patterns, supported, _supports),
    "transposable_mask": Provider("triton", transposable_mask, supported, _supports),
}
