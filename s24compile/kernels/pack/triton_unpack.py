"""Triton kernel of unpacking: (values, metadata) back to a dense weight, for a dense input gradient (row-wise masks).

Legend: M, K rows and columns of the dense matrix; a group is four neighbours of a row, a chunk the 16 k of one cell.
kernels/metadata.py draws the formats.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from s24compile.kernels.packed import Packed24
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.parts import planes
from s24compile.kernels.triton.supports import supports_dtypes, unaligned_operand, uneven_halves


@triton.jit
def unpack_rows(
    values, pitch, metadata, stride, dense, M, groups, half,
    FORMAT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Writes the groups of a tile, one 64-bit word each. values and pitch in pairs, dense in words."""
    across = tl.cdiv(groups, BLOCK_G)
    row = (tl.program_id(0) // across) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
    group = (tl.program_id(0) % across) * BLOCK_G + tl.arange(0, BLOCK_G)[None, :]
    inside = (row < M) & (group < groups)
    stored = row
    if FORMAT == "sm90_gated":
        second = (row >= half).to(tl.int32)
        local = row - second * half
        stored = local + (local & ~7) + 8 * second
    pair = tl.load(
        values.to(tl.pointer_type(tl.uint32)) + stored.to(tl.int64) * pitch + group, mask=inside, other=0
    ).to(tl.uint64)  # fmt: skip
    at = metadata.to(tl.pointer_type(tl.uint16)) + _cell(stored, group // 4, stride, FORMAT)
    code = (tl.load(at, mask=inside, other=0).to(tl.uint32) >> (4 * (group % 4)).to(tl.uint32)) & 15
    first, last = (16 * (code & 3)).to(tl.uint64), (16 * (code >> 2)).to(tl.uint64)
    word = ((pair & 0xFFFF) << first) | ((pair >> 16) << last)
    tl.store(dense.to(tl.pointer_type(tl.uint64)) + row.to(tl.int64) * groups + group, word, mask=inside)


@triton.jit
def _cell(row, chunk, stride, FORMAT: tl.constexpr):
    """Where the cell of a stored row and a chunk lies, in cells."""
    if FORMAT == "sm80":
        # Rows of 32 g + 8 a + b are r' = 32 g + 4 b + a = 2 p + s; chunks are 2 q + t; [q][p][t][s] in memory.
        shuffled = (row & ~31) + 4 * (row & 7) + ((row >> 3) & 3)
        return (chunk >> 1).to(tl.int64) * stride + 4 * (shuffled >> 1) + 2 * (chunk & 1) + (shuffled & 1)
    else:
        # [k atom][m atom][m2][k1][m0][k2][m1] in memory.
        within = 64 * ((row >> 4) & 3) + 32 * (chunk & 1) + 4 * (row & 7) + 2 * ((chunk >> 1) & 1) + ((row >> 3) & 1)
        return (chunk >> 2).to(tl.int64) * stride + 256 * (row >> 6) + within


def unpack(a: Packed24) -> Tensor:
    """See pack/reference.py."""
    (rows, cols), values = a.shape, a.values
    dense = torch.empty(rows, cols, dtype=values.dtype, device=values.device)
    cells, tile, groups = planes(a.metadata, a.format), tiles.UNPACK, cols // 4
    launch(
        unpack_rows, -(-rows // tile.rows) * -(-groups // tile.columns), tile, values.device,
        values, values.stride(0) // 2, cells, cells.stride(0), dense, rows, groups, rows // 2,
        FORMAT=a.format, BLOCK_R=tile.rows, BLOCK_G=tile.columns,
    )  # fmt: skip
    return dense


def supports_unpack(a: Packed24) -> str | None:
    """Whether `unpack` takes the call."""
    rows, cols = a.shape
    if cols % 4:
        return f"unpacks rows of whole groups of four only, not {cols} columns"
    reason = supports_dtypes(a.dtype, a.dtype, a.format) or unaligned_operand(a.values)
    return reason or uneven_halves(rows, a.format) or _interrupted(a.metadata)


def _interrupted(metadata: Tensor) -> str | None:
    column = metadata if metadata.dim() == 2 else metadata[:1]  # columns of atoms may lie apart
    return None if column.is_contiguous() else f"reads whole atoms of metadata only, not strides {metadata.stride()}"
