"""Writing the 2:4 formats from Triton: pairs of kept 16-bit values, and whole cells of metadata.

Legend: M, K rows and columns of the dense operand that is written, or of a part of its rows. kernels/metadata.py draws
the formats; FORMAT is the name of one. Tiles are whole 64 x 64 atoms: (m_atom, k_atom) is the first of them, int64.

Metadata is seen as columns of cells (uint16): one column for each 64 k ("sm90"), with 4 cells a row, or for each 32 k
("sm80"), with 2 cells a row. What a tile writes of a column is contiguous; `stride` leads to the next column.

"sm90_gated": a weight that is packed holds one half of the operand's rows, or both. `split` is its first row of the
second half: F where it holds both, 0 where it is the second, NEVER where it is the first. Other formats ignore it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.values import stack

NEVER = 1 << 29
"""A row that no weight has."""


@triton.jit
def store_pairs(
    values, pitch, M, columns, row, column, x0, x1, x2, x3, split, ALONG: tl.constexpr, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores a tile of packed values, given as pairs x0..x3 (uint32, [P, Q]).

    xi belongs to operand row `row` + 4p + i with pairs along Q (ALONG), or to row `row` + 4q + i with pairs along P.
    column: the tile's first column of pairs. pitch, columns: in pairs; columns counts the pitch's padding, which is
    written too. row, column: int64.
    """
    P: tl.constexpr = x0.shape[0]
    Q: tl.constexpr = x0.shape[1]
    if ALONG:
        tile = tl.reshape(tl.permute(stack(x0, x1, x2, x3), (0, 2, 1)), (4 * P, Q))
    else:
        tile = tl.reshape(tl.permute(stack(x0, x1, x2, x3), (1, 2, 0)), (4 * Q, P))
    store_rows(values, pitch, M, columns, row, column, tile, split, FORMAT)


@triton.jit
def store_chunk_pairs(
    values, pitch, M, columns, row, column, x0, x1, x2, x3, split, ALONG: tl.constexpr, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores packed values of chunks of 16, given as the pairs x0..x3 (uint32) of their four groups.

    xi is [rows, chunks] (ALONG) or [chunks, rows]. The rest as in `store_pairs`.
    """
    A: tl.constexpr = x0.shape[0]
    B: tl.constexpr = x0.shape[1]
    if ALONG:
        tile = tl.reshape(stack(x0, x1, x2, x3), (A, 4 * B))
    else:
        tile = tl.reshape(tl.permute(stack(x0, x1, x2, x3), (1, 0, 2)), (B, 4 * A))
    store_rows(values, pitch, M, columns, row, column, tile, split, FORMAT)


@triton.jit
def store_rows(values, pitch, M, columns, row, column, tile, split, FORMAT: tl.constexpr):
    """tile: [rows, words]; pitch, columns and column count words of its dtype."""
    at_row = row + tl.arange(0, tile.shape[0])
    at_column = column + tl.arange(0, tile.shape[1])
    if FORMAT == "sm90_gated":
        at_row = at_row.to(tl.int32)
        second = (at_row >= split).to(tl.int32)
        local = at_row - second * split
        stored = (local + (local & ~7) + 8 * second).to(tl.int64)
    else:
        stored = at_row
    at = values.to(tl.pointer_type(tile.dtype)) + stored[:, None] * pitch + at_column[None, :]
    tl.store(at, tile, mask=(at_row < M)[:, None] & (at_column < columns)[None, :])


@triton.jit
def store_metadata(
    metadata, stride, M, K, m_atom, k_atom, low, high, split, ALONG: tl.constexpr, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores the codes of a tile.

    low = c0 | c1 << 16, high = c2 | c3 << 16 (uint32, [P, Q]); ci is the code of operand row 4p + i with groups along
    Q (ALONG), or of row 4q + i with groups along P.
    """
    P: tl.constexpr = low.shape[0]
    Q: tl.constexpr = low.shape[1]
    if ALONG:
        shift = ((tl.arange(0, Q) % 4) * 4).to(tl.uint32)[None, :]
        low = tl.sum(tl.reshape(low << shift, (P, Q // 4, 4)), 2)
        high = tl.sum(tl.reshape(high << shift, (P, Q // 4, 4)), 2)
    else:
        shift = ((tl.arange(0, P) % 4) * 4).to(tl.uint32)[:, None]
        low = tl.sum(tl.reshape(low << shift, (P // 4, 4, Q)), 1)
        high = tl.sum(tl.reshape(high << shift, (P // 4, 4, Q)), 1)
    cells = stack(low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16).to(tl.uint16)
    # Atoms of the tile; digits of a row are m2, m1, m0 as in metadata.py, m0 in two pieces: 4p' + i. Of a chunk: k2,
    # k1.
    A: tl.constexpr = Q // 16 if ALONG else P // 16
    B: tl.constexpr = P // 16 if ALONG else Q // 16
    if FORMAT == "sm80":
        # Rows of 32 g + 8 a + b, a = 2 p + s; chunks of 2 q + t. [q, g, b, p, t, s] in memory.
        if ALONG:  # [g, p, s, b >> 2, atom, k2, k1, b & 3]
            cells = tl.permute(tl.reshape(cells, (B * 2, 2, 2, 2, A, 2, 2, 4)), (4, 5, 0, 3, 7, 1, 6, 2))
        else:  # [atom, k2, k1, g, p, s, b >> 2, b & 3]
            cells = tl.permute(tl.reshape(cells, (A, 2, 2, B * 2, 2, 2, 2, 4)), (0, 1, 3, 6, 7, 4, 2, 5))
    elif ALONG:  # [m2, m1, m0 >> 2, atom, k2, k1, m0 & 3]
        cells = tl.reshape(cells, (B * 4, 2, 2, A, 2, 2, 4))
        cells = tl.permute(cells, (3, 0, 1, 5, 2, 6, 4) if FORMAT == "sm90_gated" else (3, 0, 5, 2, 6, 4, 1))
    else:  # [atom, k2, k1, m2, m1, m0 >> 2, m0 & 3]
        cells = tl.reshape(cells, (A, 2, 2, B * 4, 2, 2, 4))
        cells = tl.permute(cells, (0, 3, 4, 2, 5, 6, 1) if FORMAT == "sm90_gated" else (0, 3, 2, 5, 6, 1, 4))
    cells = tl.reshape(cells, (A * 2, B * 128) if FORMAT == "sm80" else (A, B * 256))
    _store_cells(metadata, stride, M, K, m_atom, k_atom, cells, split, FORMAT)


@triton.jit
def store_chunk_codes(
    metadata, stride, M, K, m_atom, k_atom, codes, split, ALONG: tl.constexpr, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores metadata given as whole cells: codes uint32 [rows, chunks] (ALONG) or [chunks, rows]."""
    A: tl.constexpr = (codes.shape[1] if ALONG else codes.shape[0]) // 4
    B: tl.constexpr = (codes.shape[0] if ALONG else codes.shape[1]) // 64
    cells = codes.to(tl.uint16)
    if FORMAT == "sm80":
        if ALONG:  # [g, p, s, b, atom, k2, k1]
            cells = tl.permute(tl.reshape(cells, (B * 2, 2, 2, 8, A, 2, 2)), (4, 5, 0, 3, 1, 6, 2))
        else:  # [atom, k2, k1, g, p, s, b]
            cells = tl.permute(tl.reshape(cells, (A, 2, 2, B * 2, 2, 2, 8)), (0, 1, 3, 6, 4, 2, 5))
    elif ALONG:  # [m2, m1, m0, atom, k2, k1]
        cells = tl.reshape(cells, (B * 4, 2, 8, A, 2, 2))
        cells = tl.permute(cells, (3, 0, 1, 5, 2, 4) if FORMAT == "sm90_gated" else (3, 0, 5, 2, 4, 1))
    else:  # [atom, k2, k1, m2, m1, m0]
        cells = tl.reshape(cells, (A, 2, 2, B * 4, 2, 8))
        cells = tl.permute(cells, (0, 3, 4, 2, 5, 1) if FORMAT == "sm90_gated" else (0, 3, 2, 5, 1, 4))
    cells = tl.reshape(cells, (A * 2, B * 128) if FORMAT == "sm80" else (A, B * 256))
    _store_cells(metadata, stride, M, K, m_atom, k_atom, cells, split, FORMAT)


@triton.jit
def _store_cells(metadata, stride, M, K, m_atom, k_atom, cells, split, FORMAT: tl.constexpr):
    """cells: uint16 [columns of cells, cells], in the order of memory."""
    at = metadata.to(tl.pointer_type(tl.uint16))
    if FORMAT == "sm90_gated":
        # 32 cells for each eight rows, [k1][m0][k2], in every second place: the other half fills the gaps.
        column = k_atom + tl.arange(0, cells.shape[0])
        place = tl.arange(0, cells.shape[1])
        group, groups = stored_groups((m_atom * 8).to(tl.int32) + place // 32, M, split)
        entry = 64 * (group >> 1) + (group & 1) + 2 * (place % 32)
        at += column[:, None] * stride + entry[None, :]
        tl.store(at, cells, mask=(column < (K + 63) // 64)[:, None] & (group < groups)[None, :])
    elif FORMAT == "sm80":
        column = 2 * k_atom + tl.arange(0, cells.shape[0])
        entry = m_atom * 128 + tl.arange(0, cells.shape[1])
        at += column[:, None] * stride + entry[None, :]
        tl.store(at, cells, mask=(column < (K + 31) // 32)[:, None] & (entry < (M + 31) // 32 * 64)[None, :])
    else:
        column = k_atom + tl.arange(0, cells.shape[0])
        entry = m_atom * 256 + tl.arange(0, cells.shape[1])
        at += column[:, None] * stride + entry[None, :]
        tl.store(at, cells, mask=(column < (K + 63) // 64)[:, None] & (entry < (M + 63) // 64 * 256)[None, :])


@triton.jit
def stored_groups(group, M, split):
    """(which eight stored rows each eight rows of a part become, how many eights the operand has with its padding).

    Padding belongs to the half before it; a part that holds both halves keeps its padding where it is.
    """
    both = (split > 0) & (split < M)
    first = split // 8
    second = (group >= first).to(tl.int32)
    stored = 2 * (group - second * first) + second
    stored = tl.where(both & (group >= M // 8), group, stored)
    return stored, (tl.where(both, M, 2 * M) + 63) // 64 * 8
