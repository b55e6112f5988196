"""Packing along one dim into eight bits, from one read: MVUE, magnitude, soft threshold, or given pair numbers.

Legend: g [K, M] with groups along K, packed as the operand [M, K]. What triton/rows.py does for 16 bits, its tiles
held in the same way: sixteen tensors, one per place in a chunk of sixteen neighbours along K.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.fp8.triton_cast import byte_pair, estimated_pair, inverse, scale_from, scaled, to_bytes
from s24compile.kernels.fp8.triton_store import store_chunks
from s24compile.kernels.triton.rows import largest_pair, load_eight, load_group, pair_words, shrink, two_of
from s24compile.kernels.triton.sample import choose, draws, uniform
from s24compile.kernels.triton.values import anchored, narrow, stack


@triton.jit
def select(x0, x1, x2, x3, word, scale, RULE: tl.constexpr, WEIGHT: tl.constexpr, KIND: tl.constexpr):
    """(kept bytes, code, pair number) of a group, all uint32. word, WEIGHT: as in triton/rows.py."""
    if RULE == "mvue":
        first, second, h, code = choose(x0, x1, x2, x3, uniform(word))
        return estimated_pair(first, second, h, scale, KIND), code, word
    else:
        pair = word.to(tl.int32) if RULE == "given" else largest_pair(x0, x1, x2, x3)
        first, second = two_of(x0, x1, x2, x3, pair)
        if RULE == "soft_threshold":
            # The two that go are those of the complement.
            low, high = two_of(x0, x1, x2, x3, 5 - pair)
            threshold = tl.maximum(tl.abs(low), tl.abs(high))
            first = narrow(shrink(first, threshold), WEIGHT).to(tl.float32)
            second = narrow(shrink(second, threshold), WEIGHT).to(tl.float32)
        code = (tl.full(pair.shape, 0xED9C84, tl.uint32) >> (4 * pair).to(tl.uint32)) & 15
        return byte_pair(scaled(first, scale), scaled(second, scale), KIND), code, pair.to(tl.uint32)


@triton.jit
def store_bytes(
    q, pitch, first, i: tl.constexpr, rows, K, inside, scale, a, b, c, d, KIND: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """Rows 4i..4i+3 of each chunk, scaled, as bytes of q [K, M]. first: the first row of each chunk [chunks, 1]."""
    first += 4 * i
    at = q + first * pitch + rows
    if EVEN:
        tl.store(at, to_bytes(scaled(a, scale), KIND))
        tl.store(at + pitch, to_bytes(scaled(b, scale), KIND))
        tl.store(at + 2 * pitch, to_bytes(scaled(c, scale), KIND))
        tl.store(at + 3 * pitch, to_bytes(scaled(d, scale), KIND))
    else:
        tl.store(at, to_bytes(scaled(a, scale), KIND), mask=inside & (first < K))
        tl.store(at + pitch, to_bytes(scaled(b, scale), KIND), mask=inside & (first + 1 < K))
        tl.store(at + 2 * pitch, to_bytes(scaled(c, scale), KIND), mask=inside & (first + 2 < K))
        tl.store(at + 3 * pitch, to_bytes(scaled(d, scale), KIND), mask=inside & (first + 3 < K))


@triton.jit
def pack_rows(
    g, g_k, g_m, K, M, amax, seed_at, factor_at, patterns, q, q_pitch, values, pitch, metadata, stride, split,
    descale, packed_descale, sums,
    RULE: tl.constexpr, FACTOR: tl.constexpr, ROWS: tl.constexpr, SUMS: tl.constexpr, ALONG: tl.constexpr,
    EVEN: tl.constexpr, FORMAT: tl.constexpr, KIND: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Program (tile of K, tile of M), tiles of M first; tiles of K cover whole atoms.

    FACTOR: a number beside the scale that kept values are multiplied by. q: bytes [K, M] of g itself (ROWS, not ALONG).
    descale: of q ("mvue"), packed_descale: of the values; fp32 [1]. patterns, sums, split: as in triton/rows.py.
    """
    tiles = tl.cdiv(M, BLOCK_M)
    program = tl.program_id(0)
    tile_k = (program // tiles).to(tl.int64)
    k0 = tile_k * BLOCK_K
    m0 = (program % tiles).to(tl.int64) * BLOCK_M
    WEIGHT: tl.constexpr = g.dtype.element_ty
    CHUNKS: tl.constexpr = BLOCK_K // 16
    largest = tl.load(amax)
    scale = scale_from(largest, 2.0 if RULE == "mvue" else 1.0, KIND)
    rows_scale = scale_from(largest, 1.0, KIND)
    if program == 0:
        tl.store(packed_descale, inverse(scale))
        if RULE == "mvue":
            tl.store(descale, inverse(rows_scale))
    if FACTOR:
        scale = tl.load(factor_at) * scale
    rows = m0 + tl.arange(0, BLOCK_M)
    if ALONG:
        chunks = k0 + 16 * tl.arange(0, CHUNKS)
        at = g + rows[:, None] * g_m + chunks[None, :] * g_k
        a0, a1, a2, a3, b0, b1, b2, b3 = load_eight(at, g_k, rows, chunks, M, K, EVEN)
        c0, c1, c2, c3, d0, d1, d2, d3 = load_eight(at + 8 * g_k, g_k, rows, chunks + 8, M, K, EVEN)
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
        if ROWS:
            across = rows[None, :]
            store_bytes(q, q_pitch, first, 0, across, K, inside, rows_scale, a0, a1, a2, a3, KIND, EVEN)
            store_bytes(q, q_pitch, first, 1, across, K, inside, rows_scale, b0, b1, b2, b3, KIND, EVEN)
            store_bytes(q, q_pitch, first, 2, across, K, inside, rows_scale, c0, c1, c2, c3, KIND, EVEN)
            store_bytes(q, q_pitch, first, 3, across, K, inside, rows_scale, d0, d1, d2, d3, KIND, EVEN)
        row = tl.broadcast_to(rows[None, :], (CHUNKS, BLOCK_M))
        chunk = tl.broadcast_to(first // 16, (CHUNKS, BLOCK_M))
    if SUMS:
        total = ((a0 + a1) + (a2 + a3)) + ((b0 + b1) + (b2 + b3))
        total += ((c0 + c1) + (c2 + c3)) + ((d0 + d1) + (d2 + d3))
        tl.store(sums + tile_k * M + rows, tl.sum(total, 1 if ALONG else 0), mask=rows < M)
    if RULE == "mvue":
        w0, w1, w2, w3 = draws(tl.load(seed_at), anchored(chunk.to(tl.int32), a0), anchored(row.to(tl.int32), a0))
    else:
        pattern_at = patterns + row * (K // 4) + 4 * chunk
        near = (row < M) & (16 * chunk < K)
        w0, w1, w2, w3 = pair_words(pattern_at, near, 4 * chunk, K // 4, RULE)
    p0, e0, n0 = select(a0, a1, a2, a3, w0, scale, RULE, WEIGHT, KIND)
    p1, e1, n1 = select(b0, b1, b2, b3, w1, scale, RULE, WEIGHT, KIND)
    p2, e2, n2 = select(c0, c1, c2, c3, w2, scale, RULE, WEIGHT, KIND)
    p3, e3, n3 = select(d0, d1, d2, d3, w3, scale, RULE, WEIGHT, KIND)
    if RULE == "magnitude" or RULE == "soft_threshold":
        place = tl.arange(0, 4)[None, None, :]
        here = near[:, :, None] & ((4 * chunk)[:, :, None] + place < K // 4)
        tl.store(pattern_at[:, :, None] + place, stack(n0, n1, n2, n3).to(tl.uint8), mask=here)
    low, high = p0 | (p1 << 16), p2 | (p3 << 16)
    codes = e0 | (e1 << 4) | (e2 << 8) | (e3 << 12)
    store_chunks(values, pitch, metadata, stride, K, M, m0, k0, low, high, codes, split, ALONG, FORMAT)
