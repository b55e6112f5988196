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
    view, patterns, table, along, across, split, tile_r, tile_c,
    MASK: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Packs one tile [BLOCK_R, BLOCK_C] of V [R, C].

    Args:
        view: (address, stride of rows, of columns, R, C) of V.
        patterns: (address, stride of rows, of columns) of what MASK says.
        table: int32 [6, 128] by pattern number: `lines`.
        along: (values, their pitch, metadata, its stride) of the packed operand whose rows are V's.
        across: likewise of the one whose rows are V's columns.
        split: where a format interleaves, see triton/store.py.
        MASK: "search" finds pattern numbers and stores them in `patterns`, "numbers" reads them there, "bits" reads a
            mask there, a byte for each element of V.
        ALONG, ACROSS: formats of the two operands; empty: it is left out.
    """
    P: tl.constexpr = BLOCK_R // 4
    Q: tl.constexpr = BLOCK_C // 4
    w, w_row, w_column, R, C = view
    p_at, p_row, p_column = patterns
    w_at = tile_r.to(tl.int64) * BLOCK_R + 4 * tl.arange(0, P)
    w_to = tile_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (w_at < R)[:, None] & (w_to < C)[None, :]
    at = w + w_at[:, None] * w_row + w_to[None, :] * w_column
    # a0..a3: the first row of each block; b, c, d: the others.
    a = quarters(load(at, inside, EVEN), P, Q)
    b = quarters(load(at + w_row, inside, EVEN), P, Q)
    c = quarters(load(at + 2 * w_row, inside, EVEN), P, Q)
    d = quarters(load(at + 3 * w_row, inside, EVEN), P, Q)

    block_row = tile_r.to(tl.int64) * P + tl.arange(0, P)
    block_column = tile_c.to(tl.int64) * Q + tl.arange(0, Q)
    real = (4 * block_row < R)[:, None] & (4 * block_column < C)[None, :]
    if MASK == "search":
        number = searched(magnitudes(a), magnitudes(b), magnitudes(c), magnitudes(d), FLIPPED)
        number_at = p_at + block_row[:, None] * p_row + block_column[None, :] * p_column
        tl.store(number_at, number.to(tl.uint8), mask=real)
    elif MASK == "numbers":
        if not EVEN:  # clamped, not masked: `lookup` has no mask
            block_row = tl.minimum(block_row, R // 4 - 1)
            block_column = tl.minimum(block_column, C // 4 - 1)
        number = lookup(p_at + block_row[:, None] * p_row + block_column[None, :] * p_column).to(tl.int32) & 127
    if ALONG != "" or ACROSS != "":
        DTYPE: tl.constexpr = along[0].dtype.element_ty if ALONG != "" else across[0].dtype.element_ty
        a, b, c, d = words(a, DTYPE), words(b, DTYPE), words(c, DTYPE), words(d, DTYPE)
    if MASK == "bits":
        mask_at = p_at + w_at[:, None] * p_row + w_to[None, :] * p_column
        m0 = quarters(load(mask_at, inside, EVEN).to(tl.uint32), P, Q)
        m1 = quarters(load(mask_at + p_row, inside, EVEN).to(tl.uint32), P, Q)
        m2 = quarters(load(mask_at + 2 * p_row, inside, EVEN).to(tl.uint32), P, Q)
        m3 = quarters(load(mask_at + 3 * p_row, inside, EVEN).to(tl.uint32), P, Q)
        a, b, c, d = masked(a, m0), masked(b, m1), masked(c, m2), masked(d, m3)
    row = tile_r.to(tl.int64)
    column = tile_c.to(tl.int64)
    if ALONG != "":
        if MASK == "bits":
            found = lines_of_bits(nibble(m0), nibble(m1), nibble(m2), nibble(m3))
        else:
            found = lines(table, number, real, FLIPPED, EVEN)
        s01, s23, low, high = found
        kept = (
            pick(a[0], a[1], a[2], a[3], s01), pick(b[0], b[1], b[2], b[3], s01 >> 16),
            pick(c[0], c[1], c[2], c[3], s23), pick(d[0], d[1], d[2], d[3], s23 >> 16),
        )  # fmt: skip
        values, pitch, metadata, stride = along
        store_pairs(
            values, pitch // 2, R, (C + 15) // 16 * 4, row * BLOCK_R, column * Q, kept[0], kept[1], kept[2], kept[3],
            split, True, ALONG,
        )  # fmt: skip
        store_metadata(metadata, stride, R, C, row * (P // 16), column * (Q // 16), low, high, split, True, ALONG)
    if ACROSS != "":
        if MASK == "bits":
            found = lines_of_bits(
                nibble((m0[0], m1[0], m2[0], m3[0])),
                nibble((m0[1], m1[1], m2[1], m3[1])),
                nibble((m0[2], m1[2], m2[2], m3[2])),
                nibble((m0[3], m1[3], m2[3], m3[3])),
            )
        else:
            found = lines(table, number, real, not FLIPPED, EVEN)
        s01, s23, low, high = found
        kept = (
            pick(a[0], b[0], c[0], d[0], s01), pick(a[1], b[1], c[1], d[1], s01 >> 16),
            pick(a[2], b[2], c[2], d[2], s23), pick(a[3], b[3], c[3], d[3], s23 >> 16),
        )  # fmt: skip
        values, pitch, metadata, stride = across
        store_pairs(
            values, pitch // 2, C, (R + 15) // 16 * 4, column * BLOCK_C, row * P, kept[0], kept[1], kept[2], kept[3],
            split, False, ACROSS,
        )  # fmt: skip
        store_metadata(metadata, stride, C, R, column * (Q // 16), row * (P // 16), low, high, split, False, ACROSS)


@triton.jit
def magnitudes(x):
    """|x| of four tensors, in fp32."""
    return tl.abs(widen(x[0])), tl.abs(widen(x[1])), tl.abs(widen(x[2])), tl.abs(widen(x[3]))


@triton.jit
def words(x, DTYPE: tl.constexpr):
    """Four tensors as `bits`."""
    return bits(x[0], DTYPE), bits(x[1], DTYPE), bits(x[2], DTYPE), bits(x[3], DTYPE)


@triton.jit
def masked(x, mask):
    """Four tensors of words, 0 where the mask (0 or 1) is: a place that fills up a group of fewer than two holds 0."""
    # 0 - m is all ones where the mask is.
    return x[0] & (0 - mask[0]), x[1] & (0 - mask[1]), x[2] & (0 - mask[2]), x[3] & (0 - mask[3])


@triton.jit
def searched(A, B, C, D, FLIPPED: tl.constexpr):
    """Number of the best pattern of each block, given its rows' magnitudes; FLIPPED: they are the weight's columns."""
    if FLIPPED:
        return best_pattern(
            pair_sums(A[0], B[0], C[0], D[0]),
            pair_sums(A[1], B[1], C[1], D[1]),
            pair_sums(A[2], B[2], C[2], D[2]),
            pair_sums(A[3], B[3], C[3], D[3]),
        )
    else:
        return best_pattern(
            pair_sums(A[0], A[1], A[2], A[3]),
            pair_sums(B[0], B[1], B[2], B[3]),
            pair_sums(C[0], C[1], C[2], C[3]),
            pair_sums(D[0], D[1], D[2], D[3]),
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
def pack_blocks(
    w, w_row, w_column, R, C, patterns, p_row, p_column, table,
    along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride, split,
    MASK: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One weight; program i is tile i, tiles along V's columns first."""
    across_tiles = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    pack_tile(
        (w, w_row, w_column, R, C), (patterns, p_row, p_column), table,
        (along, along_pitch, along_metadata, along_stride), (across, across_pitch, across_metadata, across_stride),
        split, program // across_tiles, program % across_tiles, MASK, FLIPPED, ALONG, ACROSS, EVEN, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@triton.jit
def pack_many(
    entries, owners, table, WEIGHT: tl.constexpr, DTYPE: tl.constexpr,
    MASK: tl.constexpr, FLIPPED: tl.constexpr, ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Many weights: program i works on tile i - first of entry owners[i], whose words pack/triton_many.py lists."""
    entry = entries + tl.load(owners + tl.program_id(0)) * 17
    # What triton_many promises of them makes the accesses vectors; a loaded number carries no such knowledge.
    w = tl.multiple_of(tl.load(entry).to(tl.pointer_type(WEIGHT)), 16)
    w_row = tl.multiple_of(tl.load(entry + 1), 8)
    R, C = tl.multiple_of(tl.load(entry + 2), 8), tl.multiple_of(tl.load(entry + 3), 8)
    patterns = tl.load(entry + 4).to(tl.pointer_type(tl.uint8))
    p_pitch = tl.load(entry + 5)
    along, across = _operand(entry + 6, DTYPE), _operand(entry + 10, DTYPE)
    tiles = tl.load(entry + 14)
    split = tl.load(entry + 15)
    tile = tl.program_id(0) - tl.load(entry + 16)
    numbers = (patterns, 1, p_pitch) if FLIPPED else (patterns, p_pitch, 1)
    pack_tile(
        (w, w_row, 1, R, C), numbers, table, along, across, split, tile // tiles, tile % tiles,
        MASK, FLIPPED, ALONG, ACROSS, EVEN, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _operand(entry, DTYPE: tl.constexpr):
    """(values, pitch, metadata, stride) of four words."""
    values = tl.multiple_of(tl.load(entry).to(tl.pointer_type(DTYPE)), 16)
    pitch = tl.multiple_of(tl.load(entry + 1), 8)
    metadata = tl.multiple_of(tl.load(entry + 2).to(tl.pointer_type(tl.int16)), 16)
    return values, pitch, metadata, tl.multiple_of(tl.load(entry + 3), 16)
