"""The amax of a tensor by Triton: one number that programs raise atomically, so a maximum over several tensors too."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from s24compile.kernels.fp8 import triton_tiles as tiles
from s24compile.kernels.fp8.triton_passes import amax_tiles
from s24compile.kernels.triton.launch import launch


def by_rows(x: Tensor) -> tuple[Tensor, bool]:
    """x [R, C] seen so that its last dim is the more contiguous one, and whether that is its transpose."""
    turned = abs(x.stride(0)) < abs(x.stride(1))
    return (x.t(), True) if turned else (x, False)


def amax(x: Tensor) -> Tensor:
    """See fp8/reference.py."""
    found = torch.zeros(1, dtype=torch.float32, device=x.device)
    raise_to_amax(found, x)
    return found


def raise_to_amax(found: Tensor, x: Tensor) -> None:
    """found = max(found, amax of x), on the device. found: fp32 [1]."""
    last = x.shape[-1] if x.dim() else 1
    flat = x.detach() if x.dim() == 2 else x.detach().reshape(math.prod(x.shape[:-1]), last)
    view, _ = by_rows(flat)
    (rows, columns), tile = view.shape, tiles.AMAX
    down = -(-rows // (tile.rows * tiles.AMAX_TILES))
    launch(
        amax_tiles, down * -(-columns // tile.columns), tile, x.device, view, *view.stride(), rows, columns, found,
        TILES=tiles.AMAX_TILES, BLOCK_R=tile.rows, BLOCK_C=tile.columns,
    )  # fmt: skip
