"""Tile sizes and warps of the Triton kernels, by kernel and element size: a table, swept on a GPU."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tile:
    """One launch configuration: the tile's extent across and along the contiguous dim, warps per program, and a limit
    of registers per thread where the compiler would take so many that too few programs fit."""

    rows: int
    columns: int
    warps: int
    registers: int | None = None


# Swept on an H100 80GB HBM3 (700 W) with Triton 3.6 and bf16 unless noted, 2026-11-21, benchmarks/memory_sweep.py.
BLOCKS_SEARCH = Tile(64, 64, 2, 128)  # 124 us for 8192 x 8192; (64, 64, 4): 143 us
BLOCKS_SEARCH_WIDE = Tile(64, 64, 4)  # fp32: 168 us; the tile above spills there and takes 366 us
MANY_SEARCH = Tile(64, 64, 2, 128)  # fp32, 24 weights of 3072 x 768: 148 us, 1.25 times the bandwidth bound
BLOCKS_GIVEN = Tile(64, 64, 4)
ROWS = Tile(64, 64, 2, 96)  # 160 us for 16384 x 8192; without the limit 173 us, (64, 128, 8): 183 us
ROWS_SUMS = Tile(64, 64, 4)  # the sums need 30 registers more; not swept
ROWS_ALONG = Tile(64, 128, 4)
STATE_ALONG = Tile(64, 128, 4)  # this and the next: not measured yet; 64 tokens, the rows of a block of counts
STATE = Tile(64, 64, 2)
STATE_GRADIENT = Tile(64, 128, 4)  # not measured yet; four features by sixteen tokens are a thread's
GLU = Tile(2, 1024, 4)
GLU_GRADIENT = Tile(2, 1024, 4)
GLU_TURNED = Tile(128, 64, 16)
GLU_GRADIENT_TURNED = Tile(128, 64, 16)
UNPACK = Tile(8, 128, 4)  # columns: of groups; not swept
DECAY = Tile(2, 1024, 4)
SCALE = Tile(8, 512, 4)  # this and the next two: not measured yet
SCALE_TURNED = Tile(128, 32, 4)
FLIPS = Tile(1, 16384, 4)
SAMPLES = Tile(1, 1024, 4)
