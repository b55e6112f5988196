"""Tile sizes and warps of the Triton kernels, by kernel and element size, and how they are launched."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton.language as tl

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclasses.dataclass(frozen=True)
class Tile:
    """One launch configuration: the tile's extent across and along the contiguous dim, and warps per program."""

    rows: int
    columns: int
    warps: int


BLOCKS_SEARCH = Tile(64, 64, 4)
BLOCKS_GIVEN = Tile(128, 64, 4)
ROWS = Tile(128, 64, 4)
ROWS_ALONG = Tile(64, 128, 4)
GLU = Tile(4, 512, 4)
GLU_GRADIENT = Tile(4, 512, 4)
GLU_TURNED = Tile(64, 64, 4)
GLU_PACK = Tile(64, 64, 4)
DECAY = Tile(16, 256, 4)


def launch(kernel: Any, programs: int, tile: Tile, device: torch.device, *args: Any, **constants: Any) -> None:
    """Runs `programs` programs of a kernel on `device`, whichever device is current."""
    if programs == 0:
        return
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, num_warps=tile.warps, enable_fp_fusion=False, **constants)
    else:
        kernel[(programs,)](*args, num_warps=tile.warps, enable_fp_fusion=False, **constants)
