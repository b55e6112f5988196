"""Triton kernels of mask search, of S-STE's scale and of flips. Legend: w [m, n], blocks of 4x4."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s24compile.kernels import providers
from s24compile.kernels.masks.triton_kernels import count_differences, scale_sums
from s24compile.kernels.providers import Provider
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.packing import pack_transposable
from s24compile.kernels.triton.supports import supports_reading


def _supports(w: Tensor) -> str | None:
    return supports_reading(w)


def transposable_patterns(w: Tensor) -> Tensor:
    """See masks/reference.py."""
    patterns = w.new_empty((w.shape[0] // 4, w.shape[1] // 4), dtype=torch.uint8)
    pack_transposable(w.detach(), patterns, None, None, "search", format="", split=0)
    return patterns


def transposable_mask(w: Tensor) -> Tensor:
    """See masks/reference.py."""
    with providers.only(None):  # of which there is no kernel here
        mask: Tensor = providers.run("expand_patterns", transposable_patterns(w), "transposable")
    return mask


def soft_threshold_scale(w: Tensor) -> Tensor:
    """See masks/reference.py. One read of w; sums in fp64, those of tiles added in a second, small pass."""
    flat = w.detach().reshape(math.prod(w.shape[:-1]), w.shape[-1])
    turned = abs(flat.stride(0)) < abs(flat.stride(1))
    tile = tiles.SCALE_TURNED if turned else tiles.SCALE
    rows, columns = flat.shape
    programs = -(-rows // tile.rows) * -(-columns // tile.columns)
    totals = torch.empty((programs, 2), dtype=torch.float64, device=w.device)
    launch(
        scale_sums, programs, tile, w.device, flat, *flat.stride(), rows, columns, totals,
        TURNED=turned, BLOCK_R=tile.rows, BLOCK_C=tile.columns,
    )  # fmt: skip
    product, norm = totals.sum(0).unbind()
    return torch.where(norm == 0, 1.0, product / norm).to(torch.float32)


def _supports_flips(before: Tensor, after: Tensor) -> str | None:
    if before.dtype.itemsize != 1 or after.dtype != before.dtype:
        return f"compares masks of one byte an element only, not {before.dtype} with {after.dtype}"
    if before.shape != after.shape or not (before.is_contiguous() and after.is_contiguous()):
        return "compares contiguous masks of one shape only"
    return None


def flip_rate(before: Tensor, after: Tensor) -> Tensor:
    """See masks/reference.py. Counts exactly, whatever the size."""
    tile, size = tiles.FLIPS, before.numel()
    programs = -(-size // tile.columns)
    counts = torch.empty((programs,), dtype=torch.int32, device=before.device)
    bytes_before, bytes_after = (mask.view(torch.uint8) for mask in (before, after))
    launch(
        count_differences, programs, tile, before.device, bytes_before, bytes_after, size, counts, BLOCK=tile.columns
    )
    return counts.sum().to(torch.float32) / max(size, 1)


PROVIDERS = {
    "transposable_patterns": Provider("triton", transposable_patterns, _supports),
    "transposable_mask": Provider("triton", transposable_mask, _supports),
    "soft_threshold_scale": Provider("triton", soft_threshold_scale, _supports),
    "flip_rate": Provider("triton", flip_rate, _supports_flips),
}
