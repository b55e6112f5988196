"""Tile sizes and warps of the kernels of eight-bit floats. None is swept yet: sizes are those that compile without
spilling and load whole sectors (tests/kernels/test_triton_compiles.py)."""

from __future__ import annotations

from s24compile.kernels.triton.tiles import Tile

AMAX = Tile(4, 1024, 4)
AMAX_TILES = 4
"""Tiles that one program of it takes, one below the other: fewer atomic operations."""
QUANTISE = Tile(64, 128, 4)
ROWS = Tile(128, 64, 4, 112)
ROWS_BOTH = Tile(128, 64, 8)
"""Of a gradient that is stored as well as packed: with four warps a thread takes 178 registers."""
ROWS_ALONG = Tile(64, 128, 4)
BLOCKS = Tile(64, 64, 4)
GLU_AMAX = Tile(2, 1024, 4)
GLU_PACK = Tile(64, 64, 4)
