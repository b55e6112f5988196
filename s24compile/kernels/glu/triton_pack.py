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
from s24compile.kernels.pack.triton_rows import load_row, store_operand


@triton.jit
def _row(
    dh, z, dz, h, token, T, inside, other, dz_other, ACT: tl.constexpr, RECOMPUTE: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """One row of each chunk: stores dZ (and H), returns both halves of dZ as rounded, in fp32."""
    gated = load_row(z, token, T, inside, EVEN)
    linear = load_row(z + other, token, T, inside, EVEN)
    gradient = load_row(dh, token, T, inside, EVEN)
    activated, slope = activate_with_slope(gated, ACT, dz.dtype.element_ty != tl.float32)
    d_gated = narrow(gradient * linear * slope, dz.dtype.element_ty)
    d_linear = narrow(gradient * activated, dz.dtype.element_ty)
    here = None if EVEN else inside & (token < T)
    tl.store(dz, d_gated, mask=here)
    tl.store(dz + dz_other, d_linear, mask=here)
    if RECOMPUTE:
        tl.store(h, narrow(activated * linear, h.dtype.element_ty), mask=here)
    return widen(d_gated), widen(d_linear)


@triton.jit
def _group(
    dh, dh_t, z, z_t, dz, dz_t, h, h_t, first, i: tl.constexpr, T, inside, other, dz_other, word, other_word,
    ACT: tl.constexpr, RECOMPUTE: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Group i of each chunk: kept pair, code and sum of the gated half, then of the other."""
    r: tl.constexpr = 4 * i
    x0, y0 = _row(
        dh + r * dh_t,
        z + r * z_t,
        dz + r * dz_t,
        h + r * h_t,
        first + r,
        T,
        inside,
        other,
        dz_other,
        ACT,
        RECOMPUTE,
        EVEN,
    )
    r1: tl.constexpr = r + 1
    x1, y1 = _row(
        dh + r1 * dh_t,
        z + r1 * z_t,
        dz + r1 * dz_t,
        h + r1 * h_t,
        first + r1,
        T,
        inside,
        other,
        dz_other,
        ACT,
        RECOMPUTE,
        EVEN,
    )
    r2: tl.constexpr = r + 2
    x2, y2 = _row(
        dh + r2 * dh_t,
        z + r2 * z_t,
        dz + r2 * dz_t,
        h + r2 * h_t,
        first + r2,
        T,
        inside,
        other,
        dz_other,
        ACT,
        RECOMPUTE,
        EVEN,
    )
    r3: tl.constexpr = r + 3
    x3, y3 = _row(
        dh + r3 * dh_t,
        z + r3 * z_t,
        dz + r3 * dz_t,
        h + r3 * h_t,
        first + r3,
        T,
        inside,
        other,
        dz_other,
        ACT,
        RECOMPUTE,
        EVEN,
    )
    p, e = sample(x0, x1, x2, x3, uniform(word), DTYPE)
    q, f = sample(y0, y1, y2, y3, uniform(other_word), DTYPE)
    return p, e, (x0 + x1) + (x2 + x3), q, f, (y0 + y1) + (y2 + y3)


@triton.jit
def glu_gradient_pack(
    dh, dh_t, z, z_t, other, dz, dz_t, dz_other, h, h_t, T, F, seed_at,
    gated_row, other_row, values, pitch, metadata, k_stride, sums,
    ACT: tl.constexpr, SUMS: tl.constexpr, RECOMPUTE: tl.constexpr, EVEN: tl.constexpr,
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
    seed = tl.load(seed_at)
    anchor = load_row(z, first, T, inside, EVEN)
    row = anchored(tl.broadcast_to(column, (CHUNKS, BLOCK_F)).to(tl.int32), anchor)
    chunk = anchored(tl.broadcast_to(first // 16, (CHUNKS, BLOCK_F)).to(tl.int32), anchor)
    w0, w1, w2, w3 = draws(seed, chunk, row + gated_row)
    v0, v1, v2, v3 = draws(seed, chunk, row + other_row)
    p0, e0, s0, q0, f0, r0 = _group(
        dh, dh_t, z, z_t, dz, dz_t, h, h_t, first, 0, T, inside, other, dz_other, w0, v0, ACT, RECOMPUTE, EVEN, DTYPE
    )
    p1, e1, s1, q1, f1, r1 = _group(
        dh, dh_t, z, z_t, dz, dz_t, h, h_t, first, 1, T, inside, other, dz_other, w1, v1, ACT, RECOMPUTE, EVEN, DTYPE
    )
    p2, e2, s2, q2, f2, r2 = _group(
        dh, dh_t, z, z_t, dz, dz_t, h, h_t, first, 2, T, inside, other, dz_other, w2, v2, ACT, RECOMPUTE, EVEN, DTYPE
    )
    p3, e3, s3, q3, f3, r3 = _group(
        dh, dh_t, z, z_t, dz, dz_t, h, h_t, first, 3, T, inside, other, dz_other, w3, v3, ACT, RECOMPUTE, EVEN, DTYPE
    )
    if SUMS:
        at = sums + tile_t * (2 * F) + features
        tl.store(at + gated_row, tl.sum((s0 + s1) + (s2 + s3), 0), mask=features < F)
        tl.store(at + other_row, tl.sum((r0 + r1) + (r2 + r3), 0), mask=features < F)
    e0 = e0 | (e1 << 4) | (e2 << 8) | (e3 << 12)
    f0 = f0 | (f1 << 4) | (f2 << 8) | (f3 << 12)
    store_half(values, pitch, metadata, k_stride, T, F, gated_row, feature, token, p0, p1, p2, p3, e0)
    store_half(values, pitch, metadata, k_stride, T, F, other_row, feature, token, q0, q1, q2, q3, f0)


@triton.jit
def store_half(values, pitch, metadata, k_stride, T, F, start, feature, token, p0, p1, p2, p3, codes):
    """Stores a tile of rows [start, start + F) of the operand. start: a multiple of 64, in a region of its own."""
    store_operand(
        values + start.to(tl.int64) * pitch, pitch, metadata + start.to(tl.int64) * 4, k_stride, T, F, feature, token,
        p0, p1, p2, p3, codes, False,
    )  # fmt: skip
