"""Writing 2:4 operands of eight-bit values from Triton: kept bytes, and cells of the "sm90" formats' narrow metadata.

Legend: M, K rows and columns of the dense operand, or of a part of its rows; a chunk is sixteen neighbours along K:
four groups, eight kept bytes, two bytes of metadata. kernels/metadata.py draws the format; seen as uint16, a chunk
each, an atom of 64 rows x 128 k is [64, 8], and atoms of one column of atoms follow one another: row r begins at 8 r.

Padding along K is written too, so programs cover whole atoms: `whole_atoms`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.store import store_rows, stored_groups
from s24compile.kernels.triton.values import stack

ATOM = 128
"""k that an atom describes."""


def whole_atoms(k: int, block: int) -> int:
    """Tiles of `block` (a divisor of 128) that cover the atoms of k columns."""
    return -(-k // ATOM) * (ATOM // block)


@triton.jit
def store_chunks(
    values, pitch, metadata, stride, K, M, row, k, low, high, codes, split, ALONG: tl.constexpr, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores a tile of the operand [M, K] that starts at (row, k), int64 and multiples of 64.

    low, high: the kept bytes of groups 0 and 1, 2 and 3 of each chunk; codes: its four codes. uint32, [rows, chunks]
    (ALONG) or [chunks, rows]. pitch: in bytes. stride: uint16 from one k atom to the next. split: see
    triton/store.py.
    """
    words = tl.join(low, high)
    cells = codes.to(tl.uint16)
    if not ALONG:
        words = tl.permute(words, (1, 0, 2))
        cells = tl.permute(cells, (1, 0))
    words = tl.reshape(words, (words.shape[0], 2 * words.shape[1]))
    store_rows(values, pitch // 4, M, (K + 15) // 16 * 2, row, k // 8, words, split, FORMAT)
    store_cells(metadata, stride, K, M, row, k // 16, cells, split, FORMAT)


@triton.jit
def store_pairs(
    values, pitch, K, M, row, k, x0, x1, x2, x3, split, ALONG: tl.constexpr, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores kept bytes given as pairs x0..x3 (uint32, [P, Q]), a group each.

    xi belongs to operand row `row` + 4p + i with groups along Q (ALONG), or to row `row` + 4q + i with groups along P.
    """
    P: tl.constexpr = x0.shape[0]
    Q: tl.constexpr = x0.shape[1]
    tile = stack(x0, x1, x2, x3).to(tl.uint16)
    if ALONG:
        tile = tl.reshape(tl.permute(tile, (0, 2, 1)), (4 * P, Q))
    else:
        tile = tl.reshape(tl.permute(tile, (1, 2, 0)), (4 * Q, P))
    store_rows(values, pitch // 2, M, (K + 15) // 16 * 4, row, k // 4, tile, split, FORMAT)


@triton.jit
def store_codes(
    metadata, stride, K, M, row, k, low, high, split, ALONG: tl.constexpr, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores codes given as low = c0 | c1 << 16, high = c2 | c3 << 16 (uint32, [P, Q]), laid out as `store_pairs`'s."""
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
    if ALONG:
        cells = tl.reshape(tl.permute(cells, (0, 2, 1)), (4 * P, Q // 4))
    else:
        cells = tl.reshape(tl.permute(cells, (1, 2, 0)), (4 * Q, P // 4))
    store_cells(metadata, stride, K, M, row, k // 16, cells, split, FORMAT)


@triton.jit
def store_cells(metadata, stride, K, M, row, chunk, cells, split, FORMAT: tl.constexpr):
    """cells: uint16 [rows, chunks]."""
    at_row = row + tl.arange(0, cells.shape[0])
    if FORMAT == "sm90_gated":
        at_row = at_row.to(tl.int32)
        group, groups = stored_groups(at_row // 8, M, split)
        at_row = (8 * group + at_row % 8).to(tl.int64)
        inside = group < groups
    else:
        inside = at_row < (M + 63) // 64 * 64
    place = chunk + tl.arange(0, cells.shape[1])
    at = metadata.to(tl.pointer_type(tl.uint16)) + (place // 8)[None, :] * stride
    at += at_row[:, None] * 8 + (place % 8)[None, :]
    tl.store(at, cells, mask=inside[:, None] & (place < (K + 127) // 128 * 8)[None, :])
