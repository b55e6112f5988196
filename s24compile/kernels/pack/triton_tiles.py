"""Tile sizes and warps of the Triton kernels, by kernel and element size, and how they are launched."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton.language as tl

TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@dataclasses.dataclass(frozen=True)
class Tile:
    """One launch configuration: the tile's extent across and along the contiguous dim, warps per program, and a limit
    of registers per thread where the compiler would take so many that too few programs fit."""

    rows: int
    columns: int
    warps: int
    registers: int | None = None


BLOCKS_SEARCH = Tile(64, 64, 2, 128)
BLOCKS_GIVEN = Tile(64, 64, 4)
ROWS = Tile(64, 64, 2, 96)
ROWS_ALONG = Tile(64, 128, 4)
GLU = Tile(2, 1024, 4)
GLU_GRADIENT = Tile(2, 1024, 4)
GLU_TURNED = Tile(128, 64, 16)
GLU_GRADIENT_TURNED = Tile(128, 64, 16)
GLU_PACK = Tile(64, 64, 4)
DECAY = Tile(2, 1024, 4)


def launch(kernel: Any, programs: int, tile: Tile, device: torch.device, *args: Any, **constants: Any) -> None:
    """Runs `programs` programs of a kernel on `device`, whichever device is current."""
    if programs == 0:
        return
    if tile.registers is not None:
        constants["maxnreg"] = tile.registers
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, num_warps=tile.warps, **constants)
    else:
        kernel[(programs,)](*args, num_warps=tile.warps, **constants)
