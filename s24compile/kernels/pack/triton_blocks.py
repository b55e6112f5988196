"""Packing W.M and (W.M)^T from one read of W, M transposable: searched here or given as pattern numbers.

The kernel sees a view V [R, C] of the weight whose last dim is contiguous: V = W, or V = W^T (FLIPPED) for a weight
stored [in, out]. The search always scores the logical block, so M does not depend on the storage.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.pack.triton_format import bits, lookup, pick, quarters, store_metadata, store_pairs, widen
from s24compile.kernels.pack.triton_search import best_pattern, pair_sums


@triton.jit
def load(at, inside, EVEN: tl.constexpr):
    """What `at` points at, 0 outside; EVEN: nothing is outside."""
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0.0)


@triton.jit
def pack_tile(
    w, w_row, w_column, R, C, patterns, p_row, p_column, table,
    along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
    tile_r, tile_c,
    SEARCH: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Packs one tile [BLOCK_R, BLOCK_C] of V [R, C].

    along: the packed operand whose rows are V's; across: the one whose rows are V's columns; either may be left out.
    table: int32 [6, 128] by pattern number: `lines`.
    """
    P: tl.constexpr = BLOCK_R // 4
    Q: tl.constexpr = BLOCK_C // 4
    w_at = tile_r.to(tl.int64) * BLOCK_R + 4 * tl.arange(0, P)
    w_to = tile_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (w_at < R)[:, None] & (w_to < C)[None, :]
    at = w + w_at[:, None] * w_row + w_to[None, :] * w_column
    a0, a1, a2, a3 = quarters(load(at, inside, EVEN), P, Q)
    b0, b1, b2, b3 = quarters(load(at + w_row, inside, EVEN), P, Q)
    c0, c1, c2, c3 = quarters(load(at + 2 * w_row, inside, EVEN), P, Q)
    d0, d1, d2, d3 = quarters(load(at + 3 * w_row, inside, EVEN), P, Q)

    block_row = tile_r.to(tl.int64) * P + tl.arange(0, P)
    block_column = tile_c.to(tl.int64) * Q + tl.arange(0, Q)
    real = (4 * block_row < R)[:, None] & (4 * block_column < C)[None, :]
    if SEARCH:
        A0, A1, A2, A3 = magnitude(a0), magnitude(a1), magnitude(a2), magnitude(a3)
        B0, B1, B2, B3 = magnitude(b0), magnitude(b1), magnitude(b2), magnitude(b3)
        C0, C1, C2, C3 = magnitude(c0), magnitude(c1), magnitude(c2), magnitude(c3)
        D0, D1, D2, D3 = magnitude(d0), magnitude(d1), magnitude(d2), magnitude(d3)
        if FLIPPED:
            number = best_pattern(
                pair_sums(A0, B0, C0, D0),
                pair_sums(A1, B1, C1, D1),
                pair_sums(A2, B2, C2, D2),
                pair_sums(A3, B3, C3, D3),
            )
        else:
            number = best_pattern(
                pair_sums(A0, A1, A2, A3),
                pair_sums(B0, B1, B2, B3),
                pair_sums(C0, C1, C2, C3),
                pair_sums(D0, D1, D2, D3),
            )
        tl.store(
            patterns + block_row[:, None] * p_row + block_column[None, :] * p_column, number.to(tl.uint8), mask=real
        )
    else:
        if not EVEN:  # clamped, not masked: `lookup` has no mask
            block_row = tl.minimum(block_row, R // 4 - 1)
            block_column = tl.minimum(block_column, C // 4 - 1)
        number = lookup(patterns + block_row[:, None] * p_row + block_column[None, :] * p_column).to(tl.int32) & 127
    if ALONG or ACROSS:
        DTYPE: tl.constexpr = along.dtype.element_ty if ALONG else across.dtype.element_ty
        a0, a1, a2, a3 = bits(a0, DTYPE), bits(a1, DTYPE), bits(a2, DTYPE), bits(a3, DTYPE)
        b0, b1, b2, b3 = bits(b0, DTYPE), bits(b1, DTYPE), bits(b2, DTYPE), bits(b3, DTYPE)
        c0, c1, c2, c3 = bits(c0, DTYPE), bits(c1, DTYPE), bits(c2, DTYPE), bits(c3, DTYPE)
        d0, d1, d2, d3 = bits(d0, DTYPE), bits(d1, DTYPE), bits(d2, DTYPE), bits(d3, DTYPE)
    row = tile_r.to(tl.int64)
    column = tile_c.to(tl.int64)
    if ALONG:
        s01, s23, low, high = lines(table, number, real, FLIPPED, EVEN)
        x0, x1 = pick(a0, a1, a2, a3, s01), pick(b0, b1, b2, b3, s01 >> 16)
        x2, x3 = pick(c0, c1, c2, c3, s23), pick(d0, d1, d2, d3, s23 >> 16)
        store_pairs(along, along_pitch // 2, R, (C + 15) // 16 * 4, row * BLOCK_R, column * Q, x0, x1, x2, x3, True)
        store_metadata(
            along_metadata,
            along_stride,
            (C + 63) // 64,
            (R + 63) // 64,
            column * (Q // 16),
            row * (P // 16),
            low,
            high,
            True,
        )
    if ACROSS:
        s01, s23, low, high = lines(table, number, real, not FLIPPED, EVEN)
        x0, x1 = pick(a0, b0, c0, d0, s01), pick(a1, b1, c1, d1, s01 >> 16)
        x2, x3 = pick(a2, b2, c2, d2, s23), pick(a3, b3, c3, d3, s23 >> 16)
        store_pairs(across, across_pitch // 2, C, (R + 15) // 16 * 4, column * BLOCK_C, row * P, x0, x1, x2, x3, False)
        store_metadata(
            across_metadata,
            across_stride,
            (R + 63) // 64,
            (C + 63) // 64,
            row * (P // 16),
            column * (Q // 16),
            low,
            high,
            False,
        )


@triton.jit
def lines(table, number, real, COLUMNS: tl.constexpr, EVEN: tl.constexpr):
    """What the four rows (or COLUMNS) of each block's pattern keep: selectors of `pick` and codes, two a word."""
    FIRST: tl.constexpr = 3 if COLUMNS else 0
    codes = lookup(table + FIRST * 128 + number)
    if not EVEN:
        codes = tl.where(real, codes, 0x4444)
    low = (codes & 0xF) | ((codes & 0xF0) << 12)
    high = ((codes >> 8) & 0xF) | ((codes & 0xF000) << 4)
    return lookup(table + (FIRST + 1) * 128 + number), lookup(table + (FIRST + 2) * 128 + number), low, high


@triton.jit
def magnitude(x):
    """|x| in fp32."""
    return tl.abs(widen(x))


@triton.jit
def pack_blocks(
    w, w_row, w_column, R, C, patterns, p_row, p_column, table,
    along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
    SEARCH: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One weight; program i is tile i, tiles along V's columns first."""
    across_tiles = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    pack_tile(
        w, w_row, w_column, R, C, patterns, p_row, p_column, table,
        along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
        program // across_tiles, program % across_tiles,
        SEARCH, FLIPPED, ALONG, ACROSS, EVEN, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@triton.jit
def pack_many(
    entries, owners, table, WEIGHT: tl.constexpr, DTYPE: tl.constexpr,
    SEARCH: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Many weights: program i works on tile i - first of entry owners[i], whose words triton_many.py lists."""
    entry = entries + tl.load(owners + tl.program_id(0)) * 16
    # What triton_many promises of them makes the accesses vectors; a loaded number carries no such knowledge.
    w = tl.multiple_of(tl.load(entry).to(tl.pointer_type(WEIGHT)), 16)
    w_row = tl.multiple_of(tl.load(entry + 1), 8)
    R, C = tl.multiple_of(tl.load(entry + 2), 8), tl.multiple_of(tl.load(entry + 3), 8)
    patterns = tl.load(entry + 4).to(tl.pointer_type(tl.uint8))
    p_pitch = tl.load(entry + 5)
    along = tl.multiple_of(tl.load(entry + 6).to(tl.pointer_type(DTYPE)), 16)
    along_pitch = tl.multiple_of(tl.load(entry + 7), 8)
    along_metadata = tl.multiple_of(tl.load(entry + 8).to(tl.pointer_type(tl.int16)), 16)
    along_stride = tl.multiple_of(tl.load(entry + 9), 16)
    across = tl.multiple_of(tl.load(entry + 10).to(tl.pointer_type(DTYPE)), 16)
    across_pitch = tl.multiple_of(tl.load(entry + 11), 8)
    across_metadata = tl.multiple_of(tl.load(entry + 12).to(tl.pointer_type(tl.int16)), 16)
    across_stride = tl.multiple_of(tl.load(entry + 13), 16)
    tiles = tl.load(entry + 14)
    tile = tl.program_id(0) - tl.load(entry + 15)
    pack_tile(
        w, w_row, 1, R, C, patterns, 1 if FLIPPED else p_pitch, p_pitch if FLIPPED else 1, table,
        along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
        tile // tiles, tile % tiles, SEARCH, FLIPPED, ALONG, ACROSS, EVEN, BLOCK_R, BLOCK_C,
    )  # fmt: skip
