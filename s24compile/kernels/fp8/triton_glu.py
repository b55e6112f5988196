"""GLU's backward straight into eight bits: dH and Z in, dZ and packed MVUE(dZ^T) out, dZ in 16 bits never written.

Legend: T tokens, F hidden; all tensors row-major. A tile is held as sixteen [chunks, features] tensors per half, as in
triton_rows.py; both halves of a feature are in one program, since they share dH and the activation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.fp8.triton_cast import estimated_pair, inverse, scale_from, scaled, to_bytes
from s24compile.kernels.fp8.triton_passes import finite_size, raise_amax
from s24compile.kernels.fp8.triton_store import store_chunks
from s24compile.kernels.triton.activations import activate_with_slope
from s24compile.kernels.triton.rows import fetch
from s24compile.kernels.triton.sample import choose, draws, uniform
from s24compile.kernels.triton.values import anchored, narrow, widen


@triton.jit
def _gradients(dh, gated, linear, ACT: tl.constexpr, DTYPE: tl.constexpr):
    """Both halves of dz in fp32, rounded to z's dtype as `glu_backward` would store them."""
    gated, linear, gradient = widen(gated), widen(linear), widen(dh)
    activated, slope = activate_with_slope(gated, ACT, DTYPE != tl.float32)  # noqa: SIM300
    return widen(narrow(gradient * linear * slope, DTYPE)), widen(narrow(gradient * activated, DTYPE))


@triton.jit
def glu_gradient_amax(
    dh, dh_t, dh_f, z, z_t, z_f, other, T, F, amax,
    ACT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """The amax of dz. z: the half that the activation sees; other: how many elements after it the other begins."""
    tiles = tl.cdiv(F, BLOCK_F)
    program = tl.program_id(0)
    token = ((program // tiles).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    feature = ((program % tiles).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F))[None, :]
    inside = (token < T) & (feature < F)
    at = z + token * z_t + feature * z_f
    gated = tl.load(at, mask=inside, other=0.0)
    linear = tl.load(at + other, mask=inside, other=0.0)
    gradient = tl.load(dh + token * dh_t + feature * dh_f, mask=inside, other=0.0)
    d_gated, d_linear = _gradients(gradient, gated, linear, ACT, z.dtype.element_ty)
    raise_amax(amax, tl.maximum(finite_size(d_gated), finite_size(d_linear)))


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
def _row(dh, gated, linear, q, q_other, here, scale, ACT: tl.constexpr, DTYPE: tl.constexpr, KIND: tl.constexpr):
    """One row of each chunk: stores the bytes of both halves of dz, returns them in fp32."""
    d_gated, d_linear = _gradients(dh, gated, linear, ACT, DTYPE)
    tl.store(q, to_bytes(scaled(d_gated, scale), KIND), mask=here)
    tl.store(q + q_other, to_bytes(scaled(d_linear, scale), KIND), mask=here)
    return d_gated, d_linear


@triton.jit
def _group(
    dh, gated, linear, q, q_t, q_other, first, i: tl.constexpr, T, inside, scale, kept_scale, word, other_word,
    ACT: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """Group i of each chunk, from its four rows: kept bytes, code and sum of the gated half, then of the other."""
    q += 4 * i * q_t
    first += 4 * i
    here0 = None if EVEN else inside & (first < T)
    here1 = None if EVEN else inside & (first + 1 < T)
    here2 = None if EVEN else inside & (first + 2 < T)
    here3 = None if EVEN else inside & (first + 3 < T)
    x0, y0 = _row(dh[0], gated[0], linear[0], q, q_other, here0, scale, ACT, DTYPE, KIND)
    x1, y1 = _row(dh[1], gated[1], linear[1], q + q_t, q_other, here1, scale, ACT, DTYPE, KIND)
    x2, y2 = _row(dh[2], gated[2], linear[2], q + 2 * q_t, q_other, here2, scale, ACT, DTYPE, KIND)
    x3, y3 = _row(dh[3], gated[3], linear[3], q + 3 * q_t, q_other, here3, scale, ACT, DTYPE, KIND)
    x, x_next, h, code = choose(x0, x1, x2, x3, uniform(word))
    y, y_next, k, other_code = choose(y0, y1, y2, y3, uniform(other_word))
    pair, other_pair = estimated_pair(x, x_next, h, kept_scale, KIND), estimated_pair(y, y_next, k, kept_scale, KIND)
    return pair, code, (x0 + x1) + (x2 + x3), other_pair, other_code, (y0 + y1) + (y2 + y3)


@triton.jit
def glu_gradient_pack(
    dh, dh_t, z, z_t, other, amax, seed_at, q, q_t, q_other, gated_row, other_row, T, F,
    values, pitch, metadata, stride, descale, packed_descale, sums,
    ACT: tl.constexpr, SUMS: tl.constexpr, EVEN: tl.constexpr, FORMAT: tl.constexpr, KIND: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Program (tile of T, tile of F), tiles of F first; tiles of T cover whole atoms.

    z, q: their gated halves; other, q_other: distance to the other half. gated_row, other_row: the first row of either
    half in the operand [2F, T] and in the columns of dZ (0 and F, or F and 0; multiples of 64).
    sums: fp32 [tiles of T, 2F], column sums of dZ (SUMS).
    """
    tiles = tl.cdiv(F, BLOCK_F)
    program = tl.program_id(0)
    tile_t = (program // tiles).to(tl.int64)
    token = tile_t * BLOCK_T
    feature = (program % tiles).to(tl.int64) * BLOCK_F
    DTYPE: tl.constexpr = z.dtype.element_ty
    CHUNKS: tl.constexpr = BLOCK_T // 16
    largest = tl.load(amax)
    scale, kept_scale = scale_from(largest, 1.0, KIND), scale_from(largest, 2.0, KIND)
    if program == 0:
        tl.store(descale, inverse(scale))
        tl.store(packed_descale, inverse(kept_scale))
    features = feature + tl.arange(0, BLOCK_F)
    first = token + 16 * tl.arange(0, CHUNKS)[:, None]
    inside = (features < F)[None, :]
    column = features[None, :]
    dh += first * dh_t + column
    z += first * z_t + column
    q += first * q_t + column
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
    p0, e0, s0, r0, f0, t0 = _group(
        g0, a0, b0, q, q_t, q_other, first, 0, T, inside, scale, kept_scale, w0, v0, ACT, EVEN, DTYPE, KIND
    )
    p1, e1, s1, r1, f1, t1 = _group(
        g1, a1, b1, q, q_t, q_other, first, 1, T, inside, scale, kept_scale, w1, v1, ACT, EVEN, DTYPE, KIND
    )
    p2, e2, s2, r2, f2, t2 = _group(
        g2, a2, b2, q, q_t, q_other, first, 2, T, inside, scale, kept_scale, w2, v2, ACT, EVEN, DTYPE, KIND
    )
    p3, e3, s3, r3, f3, t3 = _group(
        g3, a3, b3, q, q_t, q_other, first, 3, T, inside, scale, kept_scale, w3, v3, ACT, EVEN, DTYPE, KIND
    )
    if SUMS:
        at = sums + tile_t * (2 * F) + features
        tl.store(at + gated_row, tl.sum((s0 + s1) + (s2 + s3), 0), mask=features < F)
        tl.store(at + other_row, tl.sum((t0 + t1) + (t2 + t3), 0), mask=features < F)
    codes = e0 | (e1 << 4) | (e2 << 8) | (e3 << 12)
    other_codes = f0 | (f1 << 4) | (f2 << 8) | (f3 << 12)
    gated_row, other_row = gated_row.to(tl.int64), other_row.to(tl.int64)
    # Row r of an atom's column of metadata begins at 8 r.
    store_chunks(
        values + gated_row * pitch, pitch, metadata + gated_row * 8, stride, T, F, feature, token,
        p0 | (p1 << 16), p2 | (p3 << 16), codes, 0, False, FORMAT,
    )  # fmt: skip
    store_chunks(
        values + other_row * pitch, pitch, metadata + other_row * 8, stride, T, F, feature, token,
        r0 | (r1 << 16), r2 | (r3 << 16), other_codes, 0, False, FORMAT,
    )  # fmt: skip
