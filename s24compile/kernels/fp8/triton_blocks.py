"""Packing W.M and (W.M)^T into eight bits from one read of W, M searched here or given as pattern numbers.

What triton/blocks.py does for 16 bits: the kernel sees a view V [R, C] whose last dim is contiguous, V = W or W^T.
The four values of a group are one word of bytes, from which a byte permutation picks the two that stay.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.fp8.triton_cast import byte_quad, inverse, scale_from, scaled
from s24compile.kernels.fp8.triton_store import store_codes, store_pairs
from s24compile.kernels.triton.blocks import load, magnitudes, searched
from s24compile.kernels.triton.values import INTERPRETED, lookup, quarters, widen


@triton.jit
def _word(x, scale, KIND: tl.constexpr):
    """Four neighbours of a row, scaled, as a word of bytes."""
    x0, x1 = scaled(widen(x[0]), scale), scaled(widen(x[1]), scale)
    x2, x3 = scaled(widen(x[2]), scale), scaled(widen(x[3]), scale)
    return byte_quad(x0, x1, x2, x3, KIND)


@triton.jit
def _permuted(x, y, SELECTOR: tl.constexpr):
    """The four bytes that the nibbles of SELECTOR name, lowest first: 0 to 3 of x, 4 to 7 of y."""
    if INTERPRETED:
        both = x.to(tl.uint64) | (y.to(tl.uint64) << 32)
        word = (both >> (8 * (SELECTOR & 15))) & 0xFF
        word |= ((both >> (8 * ((SELECTOR >> 4) & 15))) & 0xFF) << 8
        word |= ((both >> (8 * ((SELECTOR >> 8) & 15))) & 0xFF) << 16
        word |= ((both >> (8 * ((SELECTOR >> 12) & 15))) & 0xFF) << 24
        return word.to(tl.uint32)
    else:
        selector = tl.full(x.shape, SELECTOR, tl.uint32)
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [x, y, selector], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def _transposed(a, b, c, d):
    """The columns of blocks given as their rows, one word each."""
    upper, lower = _permuted(a, b, 0x5140), _permuted(c, d, 0x5140)
    upper_end, lower_end = _permuted(a, b, 0x7362), _permuted(c, d, 0x7362)
    first, second = _permuted(upper, lower, 0x5410), _permuted(upper, lower, 0x7632)
    return first, second, _permuted(upper_end, lower_end, 0x5410), _permuted(upper_end, lower_end, 0x7632)


@triton.jit
def _picked(word, code):
    """The two bytes of a group that its code i | j << 2 keeps, as the low half of a uint32."""
    if INTERPRETED:
        first = (word >> (8 * (code & 3))) & 0xFF
        return (first | (((word >> (8 * (code >> 2))) & 0xFF) << 8)).to(tl.uint32)
    else:
        selector = 0x4400 | (code & 3) | ((code >> 2) << 4)  # 4: a byte of the second operand, which is 0
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, 0, $2;", "=r,r,r", [word, selector], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def _store_operand(
    values, pitch, metadata, stride, K, M, row, k, codes, w0, w1, w2, w3, split,
    ALONG: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Stores what the codes (a nibble for each of four lines, uint32) keep of the lines' words."""
    c0, c1, c2, c3 = codes & 15, (codes >> 4) & 15, (codes >> 8) & 15, (codes >> 12) & 15
    store_pairs(
        values, pitch, K, M, row, k, _picked(w0, c0), _picked(w1, c1), _picked(w2, c2), _picked(w3, c3),
        split, ALONG, FORMAT,
    )  # fmt: skip
    store_codes(metadata, stride, K, M, row, k, c0 | (c1 << 16), c2 | (c3 << 16), split, ALONG, FORMAT)


@triton.jit
def pack_blocks(
    w, w_row, w_column, R, C, amax, patterns, p_row, p_column, table,
    along, along_pitch, along_metadata, along_stride, across, across_pitch, across_metadata, across_stride,
    split, descale, tiles,
    SEARCH: tl.constexpr, FLIPPED: tl.constexpr, ACROSS: tl.constexpr, ALONG: tl.constexpr,
    EVEN: tl.constexpr, FORMAT: tl.constexpr, KIND: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program i is tile i, `tiles` of them along V's columns; tiles cover whole atoms of 128 both ways.

    along: the packed operand whose rows are V's; across: the one whose rows are V's columns. patterns: uint8 numbers,
    found and stored (SEARCH) or read. table: as in triton/blocks.py. descale: fp32 [1] of what is written.
    pitches: in bytes; strides: uint16 from one k atom to the next.
    """
    P: tl.constexpr = BLOCK_R // 4
    Q: tl.constexpr = BLOCK_C // 4
    tile_r = (tl.program_id(0) // tiles).to(tl.int64)
    tile_c = (tl.program_id(0) % tiles).to(tl.int64)
    scale = scale_from(tl.load(amax), 1.0, KIND)
    if tl.program_id(0) == 0:
        tl.store(descale, inverse(scale))
    w_at = tile_r * BLOCK_R + 4 * tl.arange(0, P)
    w_to = tile_c * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (w_at < R)[:, None] & (w_to < C)[None, :]
    at = w + w_at[:, None] * w_row + w_to[None, :] * w_column
    a = quarters(load(at, inside, EVEN), P, Q)
    b = quarters(load(at + w_row, inside, EVEN), P, Q)
    c = quarters(load(at + 2 * w_row, inside, EVEN), P, Q)
    d = quarters(load(at + 3 * w_row, inside, EVEN), P, Q)

    block_row = tile_r * P + tl.arange(0, P)
    block_column = tile_c * Q + tl.arange(0, Q)
    real = (4 * block_row < R)[:, None] & (4 * block_column < C)[None, :]
    if SEARCH:
        number = searched(magnitudes(a), magnitudes(b), magnitudes(c), magnitudes(d), FLIPPED)
        tl.store(
            patterns + block_row[:, None] * p_row + block_column[None, :] * p_column, number.to(tl.uint8), mask=real
        )
    else:
        if not EVEN:  # clamped, not masked: `lookup` has no mask
            block_row = tl.minimum(block_row, R // 4 - 1)
            block_column = tl.minimum(block_column, C // 4 - 1)
        number = lookup(patterns + block_row[:, None] * p_row + block_column[None, :] * p_column).to(tl.int32) & 127
    a, b, c, d = _word(a, scale, KIND), _word(b, scale, KIND), _word(c, scale, KIND), _word(d, scale, KIND)
    OTHER: tl.constexpr = "sm90"  # W^T of either format
    row, column = tile_r * BLOCK_R, tile_c * BLOCK_C
    if ALONG:
        codes = lookup(table + (3 * 128 if FLIPPED else 0) + number)
        if not EVEN:
            codes = tl.where(real, codes, 0x4444)
        _store_operand(
            along, along_pitch, along_metadata, along_stride, C, R, row, column, codes, a, b, c, d, split, True,
            OTHER if FLIPPED else FORMAT,
        )  # fmt: skip
    if ACROSS:
        codes = lookup(table + (0 if FLIPPED else 3 * 128) + number)
        if not EVEN:
            codes = tl.where(real, codes, 0x4444)
        a, b, c, d = _transposed(a, b, c, d)
        _store_operand(
            across, across_pitch, across_metadata, across_stride, R, C, column, row, codes, a, b, c, d, split, False,
            FORMAT if FLIPPED else OTHER,
        )  # fmt: skip
