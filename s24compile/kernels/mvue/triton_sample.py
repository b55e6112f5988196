"""MVUE of a group of four as a Triton device function: mvue/reference.py's nine steps, in its order.

Kernels that call it must be launched with `enable_fp_fusion=False`: t1 = u h is rounded before h is added.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.pack.triton_format import INTERPRETED, bits


@triton.jit
def uniform(word):
    """uint32 -> fp32 in [0, 1), from the high 24 bits."""
    return (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def _kept_bits(x, h, DTYPE: tl.constexpr):
    """copysign(max(|x|, h), x), NaN where h is NaN, as 16 bits of DTYPE in a uint32."""
    size = tl.maximum(tl.abs(x), h, propagate_nan=tl.PropagateNan.ALL)
    return bits(size, DTYPE) | ((x.to(tl.uint32, bitcast=True) >> 16) & 0x8000)


@triton.jit
def _kept_pair(x, y, h, DTYPE: tl.constexpr):
    """The kept values of elements x and y, rounded to the 16-bit DTYPE: uint32, x's in the low half."""
    if INTERPRETED:
        return _kept_bits(x, h, DTYPE) | (_kept_bits(y, h, DTYPE) << 16)
    else:
        # Rounds both sizes at once and sets both signs at once: five instructions instead of eleven.
        CONVERT: tl.constexpr = "cvt.rn.bf16x2.f32" if DTYPE == tl.bfloat16 else "cvt.rn.f16x2.f32"
        return tl.inline_asm_elementwise(
            "{ .reg .f32 a, b; .reg .b32 s, v; abs.f32 a, $1; abs.f32 b, $2; max.NaN.f32 a, a, $3; max.NaN.f32 b, b, $3; "
            + CONVERT
            + " v, b, a; prmt.b32 s, $1, $2, 0x7632; lop3.b32 $0, s, 0x80008000, v, 0xEA; }",
            "=r,r,r,r",
            [x, y, h],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def sample(x0, x1, x2, x3, u, DTYPE: tl.constexpr):
    """The kept pair of a group in DTYPE and its code, both uint32; u: its draw. Steps are the reference's."""
    a0, a1, a2, a3 = tl.abs(x0), tl.abs(x1), tl.abs(x2), tl.abs(x3)
    q01, q23 = a0 + a1, a2 + a3
    half = 0.5 * q01 + 0.5 * q23
    # Rounding is monotonic: min(fl(a0 + q), fl(a1 + q)) = fl(min(a0, a1) + q).
    least23 = tl.minimum(a2, a3)
    h = tl.minimum(tl.minimum(tl.minimum(a0, a1) + q23, q01 + least23), half)
    h = h + 0.0 * half
    c0 = tl.minimum(a0, h)
    c1 = c0 + tl.minimum(a1, h)
    c2 = c1 + tl.minimum(a2, h)
    t1 = u * h
    t2 = t1 + h
    # a <= h where the reference says not a > h: they differ where h is NaN, and there every t comparison is false.
    fits1 = a1 <= h
    fits2 = a2 <= h
    both = least23 > 0
    either = q23 > 0
    s0 = (both | ((a1 > 0) & either)) & (a0 <= h) & (t1 >= c0)
    s1 = s0 & fits1 & both & (t1 >= c1)
    e1 = tl.where(fits1, either & (t2 >= c1), s0)
    e2 = e1 & tl.where(fits2, (a3 > 0) & (t2 >= c2), s1)
    first = tl.where(s1, x2, tl.where(s0, x1, x0))
    second = tl.where(e2, x3, tl.where(e1, x2, x1))
    code = tl.where(s1, 2, tl.where(s0, 1, 0)) | tl.where(e2, 12, tl.where(e1, 8, 4))
    return _kept_pair(first, second, h, DTYPE), code.to(tl.uint32)
