"""GLU's backward fused with MVUE packing: dH and Z in, dZ and packed MVUE(dZ^T) out, one pass.

Legend: T tokens, F hidden; all tensors row-major. A tile is held as sixteen [chunks, features] tensors per half, as in
pack/triton_rows.py; both halves of a feature are in one program, since they share dH and the activation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.glu.triton_math import activate_with_slope
from s24compile.kernels.mvue.triton_sample import draws, sample, uniform
from s24compile.kernels.pack.triton_format import anchored, narrow, widen
from s24compile.kernels.pack.triton_rows import fetch, store_operand


@triton.jit
def _fetch_group(at, step, first, i: tl.constexpr, T, inside, EVEN: tl.constexpr):
    """Rows 4i..4i+3 of each chunk, as stored."""
    at += 4 * i * step
    first += 4 * i
    return (
        fetch(at, first, T, inside, EVEN),
        fetch(at + step, first + 1, T, inside, EVEN),
        fetch(at + 2 * step, first + 2, T, inside, EVEN),
        fetch(at + 3 * step, first + 3, T, inside, EVEN),
    )


@triton.jit
def _row(gated, linear, gradient, dz, h, here, dz_other, ACT: tl.constexpr, RECOMPUTE: tl.constexpr):
    """One row of each chunk: stores dZ (and H), returns both halves of dZ as rounded, in fp32."""
    gated, linear, gradient = widen(gated), widen(linear), widen(gradient)
    activated, slope = activate_with_slope(gated, ACT, dz.dtype.element_ty != tl.float32)
    d_gated = narrow(gradient * linear * slope, dz.dtype.element_ty)
    d_linear = narrow(gradient * activated, dz.dtype.element_ty)
    tl.store(dz, d_gated, mask=here)
    tl.store(dz + dz_other, d_linear, mask=here)
    if RECOMPUTE:
        tl.store(h, narrow(activated * linear, h.dtype.element_ty), mask=here)
    return widen(d_gated), widen(d_linear)


@triton.jit
def _group(
    gated, linear, gradient, dz, dz_t, h, h_t, first, i: tl.constexpr, T, inside, dz_other, word, other_word,
    ACT: tl.constexpr, RECOMPUTE: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Group i of each chunk, from its four rows: kept pair, code and sum of the gated half, then of the other."""
    dz += 4 * i * dz_t
    h += 4 * i * h_t
    first += 4 * i
    here0 = None if EVEN else inside & (first < T)
    here1 = None if EVEN else inside & (first + 1 < T)
    here2 = None if EVEN else inside & (first + 2 < T)
    here3 = None if EVEN else inside & (first + 3 < T)
    x0, y0 = _row(gated[0], linear[0], gradient[0], dz, h, here0, dz_other, ACT, RECOMPUTE)
    x1, y1 = _row(gated[1], linear[1], gradient[1], dz + dz_t, h + h_t, here1, dz_other, ACT, RECOMPUTE)
    x2, y2 = _row(gated[2], linear[2], gradient[2], dz + 2 * dz_t, h + 2 * h_t, here2, dz_other, ACT, RECOMPUTE)
    x3, y3 = _row(gated[3], linear[3], gradient[3], dz + 3 * dz_t, h + 3 * h_t, here3, dz_other, ACT, RECOMPUTE)
    p, e = sample(x0, x1, x2, x3, uniform(word), DTYPE)
    q, f = sample(y0, y1, y2, y3, uniform(other_word), DTYPE)
    return p, e, (x0 + x1) + (x2 + x3), q, f, (y0 + y1) + (y2 + y3)


@triton.jit
def glu_gradient_pack(
    dh, dh_t, z, z_t, other, dz, dz_t, dz_other, h, h_t, T, F, seed_at,
    gated_row, other_row, values, pitch, metadata, stride, sums,
    ACT: tl.constexpr, SUMS: tl.constexpr, RECOMPUTE: tl.constexpr, EVEN: tl.constexpr, FORMAT: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Program (tile of T, tile of F), tiles of F first.

    z, dz: their gated halves; other, dz_other: distance to the other half. gated_row, other_row: the first row of
    either half in the operand [2F, T] and in the columns of dZ (0 and F, or F and 0; multiples of 64).
    sums: fp32 [tiles of T, 2F], column sums of dZ (SUMS). h: H recomputed (RECOMPUTE).
    """
    tiles = tl.cdiv(F, BLOCK_F)
    program = tl.program_id(0)
    tile_t = (program // tiles).to(tl.int64)
    token = tile_t * BLOCK_T
    feature = (program % tiles).to(tl.int64) * BLOCK_F
    DTYPE: tl.constexpr = values.dtype.element_ty
    CHUNKS: tl.constexpr = BLOCK_T // 16
    features = feature + tl.arange(0, BLOCK_F)
    first = token + 16 * tl.arange(0, CHUNKS)[:, None]
    inside = (features < F)[None, :]
    column = features[None, :]
    dh += first * dh_t + column
    z += first * z_t + column
    dz += first * dz_t + column
    h += first * h_t + column
    # All loads come before the first store: no load may pass a store that could be to the same place, and sixteen
    # rows one after the other are sixteen times the latency of memory.
    a0, b0 = _fetch_group(z, z_t, first, 0, T, inside, EVEN), _fetch_group(z + other, z_t, first, 0, T, inside, EVEN)
    g0 = _fetch_group(dh, dh_t, first, 0, T, inside, EVEN)
    a1, b1 = _fetch_group(z, z_t, first, 1, T, inside, EVEN), _fetch_group(z + other, z_t, first, 1, T, inside, EVEN)
    g1 = _fetch_group(dh, dh_t, first, 1, T, inside, EVEN)
    a2, b2 = _fetch_group(z, z_t, first, 2, T, inside, EVEN), _fetch_group(z + other, z_t, first, 2, T, inside, EVEN)
    g2 = _fetch_group(dh, dh_t, first, 2, T, inside, EVEN)
    a3, b3 = _fetch_group(z, z_t, first, 3, T, inside, EVEN), _fetch_group(z + other, z_t, first, 3, T, inside, EVEN)
    g3 = _fetch_group(dh, dh_t, first, 3, T, inside, EVEN)

    seed = tl.load(seed_at)
    anchor = widen(a0[0])
    row = anchored(tl.broadcast_to(column, (CHUNKS, BLOCK_F)).to(tl.int32), anchor)
    chunk = anchored(tl.broadcast_to(first // 16, (CHUNKS, BLOCK_F)).to(tl.int32), anchor)
    w0, w1, w2, w3 = draws(seed, chunk, row + gated_row)
    v0, v1, v2, v3 = draws(seed, chunk, row + other_row)
    p0, e0, s0, q0, f0, r0 = _group(
        a0, b0, g0, dz, dz_t, h, h_t, first, 0, T, inside, dz_other, w0, v0, ACT, RECOMPUTE, EVEN, DTYPE
    )
    p1, e1, s1, q1, f1, r1 = _group(
        a1, b1, g1, dz, dz_t, h, h_t, first, 1, T, inside, dz_other, w1, v1, ACT, RECOMPUTE, EVEN, DTYPE
    )
    p2, e2, s2, q2, f2, r2 = _group(
        a2, b2, g2, dz, dz_t, h, h_t, first, 2, T, inside, dz_other, w2, v2, ACT, RECOMPUTE, EVEN, DTYPE
    )
    p3, e3, s3, q3, f3, r3 = _group(
        a3, b3, g3, dz, dz_t, h, h_t, first, 3, T, inside, dz_other, w3, v3, ACT, RECOMPUTE, EVEN, DTYPE
    )
    if SUMS:
        at = sums + tile_t * (2 * F) + features
        tl.store(at + gated_row, tl.sum((s0 + s1) + (s2 + s3), 0), mask=features < F)
        tl.store(at + other_row, tl.sum((r0 + r1) + (r2 + r3), 0), mask=features < F)
    e0 = e0 | (e1 << 4) | (e2 << 8) | (e3 << 12)
    f0 = f0 | (f1 << 4) | (f2 << 8) | (f3 << 12)
    _store_half(values, pitch, metadata, stride, T, F, gated_row, feature, token, p0, p1, p2, p3, e0, FORMAT)
    _store_half(values, pitch, metadata, stride, T, F, other_row, feature, token, q0, q1, q2, q3, f0, FORMAT)


@triton.jit
def _store_half(
    values, pitch, metadata, stride, T, F, start, feature, token, p0, p1, p2, p3, codes, FORMAT: tl.constexpr
):  # fmt: skip
    """Stores a tile of rows [start, start + F) of the operand. start: a multiple of 64, in a region of its own."""
    start = start.to(tl.int64)
    values += start * pitch
    metadata += start * (2 if FORMAT == "sm80" else 4)
    store_operand(values, pitch, metadata, stride, T, F, feature, token, p0, p1, p2, p3, codes, 0, False, FORMAT)
