"""Selecting and packing along one dim only, from one read: magnitude, soft threshold, MVUE, or given pair numbers.

Legend: g [K, M] with groups along K, packed as the operand [M, K] (g = dZ [T, F], or W^T of a weight [M, K]).

A Philox call serves the sixteen neighbours along K of a row, and a metadata cell describes them; so a tile is held
as sixteen tensors, one per place in such a chunk: [chunks, rows] where g is row-major, [rows, chunks] (ALONG) where
g is column-major.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.sample import draws, sample, uniform
from s24compile.kernels.triton.store import store_chunk_codes, store_chunk_pairs
from s24compile.kernels.triton.values import (
    anchored,
    bits,
    eighths,
    fourths,
    narrow,
    stack,
    widen,
)


@triton.jit
def _key(x):
    """|x| as an integer of the same order; NaN above Inf."""
    return tl.abs(x).to(tl.int32, bitcast=True)


@triton.jit
def largest_pair(x0, x1, x2, x3):
    """Pair number (int32) of the two largest magnitudes; ties keep the lower place."""
    k0, k1, k2, k3 = _key(x0), _key(x1), _key(x2), _key(x3)
    w01, w02, w03, w12, w13, w23 = k0 >= k1, k0 >= k2, k0 >= k3, k1 >= k2, k1 >= k3, k2 >= k3
    keep0 = (w01 & w02) | (w01 & w03) | (w02 & w03)
    keep1 = (~w01 & (w12 | w13)) | (w12 & w13)
    keep2 = (~w02 & (~w12 | w23)) | (~w12 & w23)
    return tl.where(keep0, tl.where(keep1, 0, tl.where(keep2, 1, 2)), tl.where(keep1, tl.where(keep2, 3, 4), 5))


@triton.jit
def two_of(a, b, c, d, pair):
    """The two of four that a pair number keeps."""
    first = tl.where(pair < 3, a, tl.where(pair < 5, b, c))
    second = tl.where(pair == 0, b, tl.where((pair == 1) | (pair == 3), c, d))
    return first, second


@triton.jit
def shrink(x, threshold):
    """sign(x) (|x| - threshold), the sign kept also where that is 0."""
    size = tl.abs(x) - threshold
    return ((size.to(tl.uint32, bitcast=True)) | (x.to(tl.uint32, bitcast=True) & 0x80000000)).to(
        tl.float32, bitcast=True
    )


@triton.jit
def select(x0, x1, x2, x3, word, scale, RULE: tl.constexpr, WEIGHT: tl.constexpr, DTYPE: tl.constexpr):
    """(kept pair, code, pair number) of a group, the first two uint32.

    word: 32 random bits ("mvue") or the pair number ("given"). WEIGHT: dtype that a shrunk weight is rounded to.
    """
    if RULE == "mvue":
        kept, code = sample(x0, x1, x2, x3, uniform(word), DTYPE)
        return kept, code, word
    else:
        pair = word.to(tl.int32) if RULE == "given" else largest_pair(x0, x1, x2, x3)
        first, second = two_of(x0, x1, x2, x3, pair)
        if RULE == "soft_threshold":
            # The two that go are those of the complement.
            low, high = two_of(x0, x1, x2, x3, 5 - pair)
            threshold = tl.maximum(tl.abs(low), tl.abs(high))
            first = scale * narrow(shrink(first, threshold), WEIGHT).to(tl.float32)
            second = scale * narrow(shrink(second, threshold), WEIGHT).to(tl.float32)
        # Codes of the six pairs, a nibble each: kernels/patterns.py.
        code = (tl.full(pair.shape, 0xED9C84, tl.uint32) >> (4 * pair).to(tl.uint32)) & 15
        return bits(first, DTYPE) | (bits(second, DTYPE) << 16), code, pair.to(tl.uint32)


@triton.jit
def fetch(at, row, rows, inside, EVEN: tl.constexpr):
    """What `at` [A, B] points at where `row` < rows and `inside`, else 0; EVEN: that holds everywhere."""
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside & (row < rows), other=0.0)


@triton.jit
def load_group(at, step, first, i: tl.constexpr, rows, inside, EVEN: tl.constexpr):
    """Rows 4i..4i+3 of each chunk of a row-major tile, fp32. first: the first row of each chunk [A, 1]."""
    at += 4 * i * step
    first += 4 * i
    return (
        widen(fetch(at, first, rows, inside, EVEN)),
        widen(fetch(at + step, first + 1, rows, inside, EVEN)),
        widen(fetch(at + 2 * step, first + 2, rows, inside, EVEN)),
        widen(fetch(at + 3 * step, first + 3, rows, inside, EVEN)),
    )


@triton.jit
def load_eight(at, step, rows, ks, M, K, EVEN: tl.constexpr):
    """Eight neighbours along K, from each of ks, of each row: eight [rows, ks], fp32. at: pointers [rows, ks].

    Loads are 16 bytes, what a thread takes at once: it then holds all it splits, and nothing moves between threads.
    """
    if at.dtype.element_ty == tl.float32:
        x0, x1, x2, x3 = fourths(_fetch_run(at, step, rows, ks, M, K, 4, EVEN))
        x4, x5, x6, x7 = fourths(_fetch_run(at + 4 * step, step, rows, ks + 4, M, K, 4, EVEN))
    else:
        x0, x1, x2, x3, x4, x5, x6, x7 = eighths(_fetch_run(at, step, rows, ks, M, K, 8, EVEN))
    return widen(x0), widen(x1), widen(x2), widen(x3), widen(x4), widen(x5), widen(x6), widen(x7)


@triton.jit
def _fetch_run(at, step, rows, ks, M, K, COUNT: tl.constexpr, EVEN: tl.constexpr):
    """[rows, ks, COUNT] neighbours along K."""
    place = ks[None, :, None] + tl.arange(0, COUNT)[None, None, :]
    at = at[:, :, None] + tl.arange(0, COUNT)[None, None, :] * step
    return fetch(at, place, K, (rows < M)[:, None, None], EVEN)


@triton.jit
def store_operand(
    values, pitch, metadata, stride, K, M, row, k, p0, p1, p2, p3, codes, split,
    ALONG: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Stores a tile of the packed operand [M, K] that starts at (row, k), both int64 and multiples of 64."""
    store_chunk_pairs(values, pitch // 2, M, (K + 15) // 16 * 4, row, k // 4, p0, p1, p2, p3, split, ALONG, FORMAT)
    store_chunk_codes(metadata, stride, M, K, row // 64, k // 64, codes, split, ALONG, FORMAT)


@triton.jit
def pack_rows(
    g, g_k, g_m, K, M, seed_at, scale_at, patterns, values, pitch, metadata, stride, split, sums,
    RULE: tl.constexpr, SCALED: tl.constexpr, SUMS: tl.constexpr, ALONG: tl.constexpr, EVEN: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Program (tile of K, tile of M), tiles of M first.

    patterns: uint8 [M, K/4] contiguous, read by "given", written by "magnitude" and "soft_threshold".
    sums: fp32 [tiles of K, M], the sums of each tile along K (SUMS). FORMAT, split: see triton/store.py.
    """
    tiles = tl.cdiv(M, BLOCK_M)
    program = tl.program_id(0)
    tile_k = (program // tiles).to(tl.int64)
    k0 = tile_k * BLOCK_K
    m0 = (program % tiles).to(tl.int64) * BLOCK_M
    DTYPE: tl.constexpr = values.dtype.element_ty
    WEIGHT: tl.constexpr = g.dtype.element_ty
    CHUNKS: tl.constexpr = BLOCK_K // 16
    rows = m0 + tl.arange(0, BLOCK_M)
    if ALONG:
        # Two halves of eight: a thread then holds whole chunks, as loaded.
        chunks = k0 + 16 * tl.arange(0, CHUNKS)
        at = g + rows[:, None] * g_m + chunks[None, :] * g_k
        a0, a1, a2, a3, b0, b1, b2, b3 = load_eight(at, g_k, rows, chunks, M, K, EVEN)
        c0, c1, c2, c3, d0, d1, d2, d3 = load_eight(at + 8 * g_k, g_k, rows, chunks + 8, M, K, EVEN)
        if SUMS:
            total = ((a0 + a1) + (a2 + a3)) + ((b0 + b1) + (b2 + b3))
            total += ((c0 + c1) + (c2 + c3)) + ((d0 + d1) + (d2 + d3))
            tl.store(sums + tile_k * M + rows, tl.sum(total, 1), mask=rows < M)
        row = tl.broadcast_to(rows[:, None], (BLOCK_M, CHUNKS))
        chunk = tl.broadcast_to((k0 // 16 + tl.arange(0, CHUNKS))[None, :], (BLOCK_M, CHUNKS))
    else:
        first = k0 + 16 * tl.arange(0, CHUNKS)[:, None]
        inside = (rows < M)[None, :]
        at = g + first * g_k + rows[None, :] * g_m
        a0, a1, a2, a3 = load_group(at, g_k, first, 0, K, inside, EVEN)
        b0, b1, b2, b3 = load_group(at, g_k, first, 1, K, inside, EVEN)
        c0, c1, c2, c3 = load_group(at, g_k, first, 2, K, inside, EVEN)
        d0, d1, d2, d3 = load_group(at, g_k, first, 3, K, inside, EVEN)
        if SUMS:
            total = ((a0 + a1) + (a2 + a3)) + ((b0 + b1) + (b2 + b3))
            total += ((c0 + c1) + (c2 + c3)) + ((d0 + d1) + (d2 + d3))
            tl.store(sums + tile_k * M + rows, tl.sum(total, 0), mask=rows < M)
        row = tl.broadcast_to(rows[None, :], (CHUNKS, BLOCK_M))
        chunk = tl.broadcast_to(first // 16, (CHUNKS, BLOCK_M))
    scale = tl.load(scale_at) if SCALED else 1.0
    if RULE == "mvue":
        w0, w1, w2, w3 = draws(tl.load(seed_at), anchored(chunk.to(tl.int32), a0), anchored(row.to(tl.int32), a0))
    else:
        pattern_at = patterns + row * (K // 4) + 4 * chunk
        near = (row < M) & (16 * chunk < K)
        w0, w1, w2, w3 = pair_words(pattern_at, near, 4 * chunk, K // 4, RULE)
    p0, e0, n0 = select(a0, a1, a2, a3, w0, scale, RULE, WEIGHT, DTYPE)
    p1, e1, n1 = select(b0, b1, b2, b3, w1, scale, RULE, WEIGHT, DTYPE)
    p2, e2, n2 = select(c0, c1, c2, c3, w2, scale, RULE, WEIGHT, DTYPE)
    p3, e3, n3 = select(d0, d1, d2, d3, w3, scale, RULE, WEIGHT, DTYPE)
    if RULE == "magnitude" or RULE == "soft_threshold":
        place = tl.arange(0, 4)[None, None, :]
        at = pattern_at[:, :, None] + place
        tl.store(
            at, stack(n0, n1, n2, n3).to(tl.uint8), mask=near[:, :, None] & ((4 * chunk)[:, :, None] + place < K // 4)
        )
    codes = e0 | (e1 << 4) | (e2 << 8) | (e3 << 12)
    store_operand(values, pitch, metadata, stride, K, M, m0, k0, p0, p1, p2, p3, codes, split, ALONG, FORMAT)


@triton.jit
def pair_words(at, near, group, groups, RULE: tl.constexpr):
    """The given pair numbers of each chunk's four groups; 0 outside, and where there are none to read."""
    if RULE == "given":
        return (
            tl.load(at, mask=near, other=0),
            tl.load(at + 1, mask=near & (group + 1 < groups), other=0),
            tl.load(at + 2, mask=near & (group + 2 < groups), other=0),
            tl.load(at + 3, mask=near & (group + 3 < groups), other=0),
        )
    else:
        nothing = tl.zeros(near.shape, tl.uint8)
        return nothing, nothing, nothing, nothing
