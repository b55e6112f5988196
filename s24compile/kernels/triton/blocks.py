"""Packing W.M and (W.M)^T from one read of W: M searched here, given as pattern numbers, or given as a mask.

The kernel sees a view V [R, C] of the weight whose last dim is contiguous: V = W, or V = W^T (FLIPPED) for a weight
stored [in, out]. The search always scores the logical block, so M does not depend on the storage.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.patterns import CODE_OF_BITS
from s24compile.kernels.triton.search import best_pattern, pair_sums
from s24compile.kernels.triton.store import store_metadata, store_pairs
from s24compile.kernels.triton.values import bits, lookup, pick, quarters, widen

_CODES = sum(code << 4 * bits for bits, code in enumerate(CODE_OF_BITS))
CODES_LOW, CODES_HIGH = tl.constexpr(_CODES & 0xFFFFFFFF), tl.constexpr(_CODES >> 32)


@triton.jit
def load(at, inside, EVEN: tl.constexpr):
    """What `at` points at, 0 outside; EVEN: nothing is outside."""
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0)


@triton.jit
def pack_tile(
    w, w_row, w_column, R, C, patterns, p_row, p_column, table,
    along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
    split, tile_r, tile_c,
    MASK: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Packs one tile [BLOCK_R, BLOCK_C] of V [R, C].

    along: the packed operand whose rows are V's; across: the one whose rows are V's columns; either may be left out.
    FORMAT: that of the weight's own operand, along unless FLIPPED. split: where it interleaves, see triton/store.py.
    MASK: "search" finds pattern numbers and stores them in `patterns`, "numbers" reads them there, "bits" reads a mask
    there, a byte for each element of V. table: int32 [6, 128] by pattern number: `lines`.
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
    if MASK == "search":
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
    elif MASK == "numbers":
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
    if MASK == "bits":
        mask_at = patterns + w_at[:, None] * p_row + w_to[None, :] * p_column
        m0 = quarters(load(mask_at, inside, EVEN).to(tl.uint32), P, Q)
        m1 = quarters(load(mask_at + p_row, inside, EVEN).to(tl.uint32), P, Q)
        m2 = quarters(load(mask_at + 2 * p_row, inside, EVEN).to(tl.uint32), P, Q)
        m3 = quarters(load(mask_at + 3 * p_row, inside, EVEN).to(tl.uint32), P, Q)
        # 0 - m is all ones where the mask is; a place that fills up a group of fewer than two holds 0.
        a0, a1, a2, a3 = a0 & (0 - m0[0]), a1 & (0 - m0[1]), a2 & (0 - m0[2]), a3 & (0 - m0[3])
        b0, b1, b2, b3 = b0 & (0 - m1[0]), b1 & (0 - m1[1]), b2 & (0 - m1[2]), b3 & (0 - m1[3])
        c0, c1, c2, c3 = c0 & (0 - m2[0]), c1 & (0 - m2[1]), c2 & (0 - m2[2]), c3 & (0 - m2[3])
        d0, d1, d2, d3 = d0 & (0 - m3[0]), d1 & (0 - m3[1]), d2 & (0 - m3[2]), d3 & (0 - m3[3])
    row = tile_r.to(tl.int64)
    column = tile_c.to(tl.int64)
    TRANSPOSED: tl.constexpr = "sm90" if FORMAT == "sm90_gated" else FORMAT
    if ALONG:
        KIND: tl.constexpr = TRANSPOSED if FLIPPED else FORMAT
        if MASK == "bits":
            s01, s23, low, high = lines_of_bits(nibble(m0), nibble(m1), nibble(m2), nibble(m3))
        else:
            s01, s23, low, high = lines(table, number, real, FLIPPED, EVEN)
        x0, x1 = pick(a0, a1, a2, a3, s01), pick(b0, b1, b2, b3, s01 >> 16)
        x2, x3 = pick(c0, c1, c2, c3, s23), pick(d0, d1, d2, d3, s23 >> 16)
        store_pairs(
            along, along_pitch // 2, R, (C + 15) // 16 * 4, row * BLOCK_R, column * Q, x0, x1, x2, x3, split, True, KIND
        )  # fmt: skip
        store_metadata(
            along_metadata, along_stride, R, C, row * (P // 16), column * (Q // 16), low, high, split, True, KIND
        )  # fmt: skip
    if ACROSS:
        TURNED: tl.constexpr = FORMAT if FLIPPED else TRANSPOSED
        if MASK == "bits":
            s01, s23, low, high = lines_of_bits(
                nibble((m0[0], m1[0], m2[0], m3[0])),
                nibble((m0[1], m1[1], m2[1], m3[1])),
                nibble((m0[2], m1[2], m2[2], m3[2])),
                nibble((m0[3], m1[3], m2[3], m3[3])),
            )
        else:
            s01, s23, low, high = lines(table, number, real, not FLIPPED, EVEN)
        x0, x1 = pick(a0, b0, c0, d0, s01), pick(a1, b1, c1, d1, s01 >> 16)
        x2, x3 = pick(a2, b2, c2, d2, s23), pick(a3, b3, c3, d3, s23 >> 16)
        store_pairs(
            across, across_pitch // 2, C, (R + 15) // 16 * 4, column * BLOCK_C, row * P, x0, x1, x2, x3,
            split, False, TURNED,
        )  # fmt: skip
        store_metadata(
            across_metadata, across_stride, C, R, column * (Q // 16), row * (P // 16), low, high, split, False, TURNED
        )  # fmt: skip


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
def nibble(bits):
    """Four bits (uint32, 0 or 1) of a group, place 0 lowest."""
    return bits[0] | (bits[1] << 1) | (bits[2] << 2) | (bits[3] << 3)


@triton.jit
def _code(nibble):
    """Metadata code of the places that a group keeps: kernels/patterns.py's CODE_OF_BITS, a nibble each."""
    codes = tl.where(nibble < 8, CODES_LOW, CODES_HIGH).to(tl.uint32)
    return (codes >> ((nibble & 7) * 4)) & 15


@triton.jit
def _selector(code):
    """The selector of `pick` for a code: bytes 2i, 2i + 1, 2j, 2j + 1 of places i and j."""
    return 0x1010 + (code & 3) * 0x22 + (code >> 2) * 0x2200


@triton.jit
def lines_of_bits(n0, n1, n2, n3):
    """`lines` of four groups whose places are given as nibbles."""
    e0, e1, e2, e3 = _code(n0), _code(n1), _code(n2), _code(n3)
    s01, s23 = _selector(e0) | (_selector(e1) << 16), _selector(e2) | (_selector(e3) << 16)
    return s01, s23, e0 | (e1 << 16), e2 | (e3 << 16)


@triton.jit
def magnitude(x):
    """|x| in fp32."""
    return tl.abs(widen(x))


@triton.jit
def pack_blocks(
    w, w_row, w_column, R, C, patterns, p_row, p_column, table,
    along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride, split,
    MASK: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One weight; program i is tile i, tiles along V's columns first."""
    across_tiles = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    pack_tile(
        w, w_row, w_column, R, C, patterns, p_row, p_column, table,
        along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
        split, program // across_tiles, program % across_tiles,
        MASK, FLIPPED, ALONG, ACROSS, EVEN, FORMAT, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@triton.jit
def pack_many(
    entries, owners, table, WEIGHT: tl.constexpr, DTYPE: tl.constexpr,
    MASK: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Many weights: program i works on tile i - first of entry owners[i], whose words triton_many.py lists."""
    WORDS: tl.constexpr = 17 if FORMAT == "sm90_gated" else 16
    entry = entries + tl.load(owners + tl.program_id(0)) * WORDS
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
    split = tl.load(entry + 15) if FORMAT == "sm90_gated" else 0
    tile = tl.program_id(0) - tl.load(entry + WORDS - 1)
    pack_tile(
        w, w_row, 1, R, C, patterns, 1 if FLIPPED else p_pitch, p_pitch if FLIPPED else 1, table,
        along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
        split, tile // tiles, tile % tiles, MASK, FLIPPED, ALONG, ACROSS, EVEN, FORMAT, BLOCK_R, BLOCK_C,
    )  # fmt: skip
