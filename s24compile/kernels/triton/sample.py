"""MVUE of a group of four and its random words, as Triton device functions: mvue/reference.py's steps, in its order."""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.values import INTERPRETED, bits


@triton.jit
def draws(seed, chunk, row):
    """The four random words of each chunk of sixteen, one per group: Philox4x32-10 as in kernels/philox.py.

    seed: int64; chunk, row: int32 of one shape. tl.philox takes the two halves of each product from two
    multiplications; here both come from one.
    """
    c0, c1 = chunk.to(tl.uint32), row.to(tl.uint32)
    c2, c3 = tl.zeros(chunk.shape, tl.uint32), tl.zeros(chunk.shape, tl.uint32)
    k0, k1 = (seed & 0xFFFFFFFF).to(tl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        low0, low1 = c0.to(tl.uint64) * 0xD2511F53, c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (low1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (low0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1, c3 = low1.to(tl.uint32), low0.to(tl.uint32)
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _product(x, y):
    """x * y, rounded, whatever is added to it next."""
    if INTERPRETED:
        return x * y
    else:
        return tl.inline_asm_elementwise(
            "mul.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], dtype=tl.float32, is_pure=True, pack=1
        )


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
        CONVERT: tl.constexpr = "cvt.rn.bf16x2.f32" if DTYPE == tl.bfloat16 else "cvt.rn.f16x2.f32"  # noqa: SIM300
        return tl.inline_asm_elementwise(
            "{ .reg .f32 a, b; .reg .b32 s, v; "
            "abs.f32 a, $1; abs.f32 b, $2; max.NaN.f32 a, a, $3; max.NaN.f32 b, b, $3; "
            + CONVERT
            + " v, b, a; prmt.b32 s, $1, $2, 0x7632; lop3.b32 $0, s, 0x80008000, v, 0xEA; }",
            "=r,r,r,r",
            [x, y, h],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def _at_least(x, y):
    """All ones where x >= y, else 0 (uint32). Conditions would need more predicate registers than there are."""
    if INTERPRETED:
        return tl.where(x >= y, 0xFFFFFFFF, 0).to(tl.uint32)
    else:
        return tl.inline_asm_elementwise(
            "set.ge.u32.f32 $0, $1, $2;", "=r,f,f", [x, y], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def _positive(x):
    """All ones where x > 0, else 0 (uint32)."""
    if INTERPRETED:
        return tl.where(x > 0, 0xFFFFFFFF, 0).to(tl.uint32)
    else:
        return tl.inline_asm_elementwise(
            "set.gt.u32.f32 $0, $1, 0f00000000;", "=r,f", [x], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def _either(mask, x, y):
    """x where the mask is all ones, y where it is 0; uint32."""
    return y ^ ((x ^ y) & mask)


@triton.jit
def sample(x0, x1, x2, x3, u, DTYPE: tl.constexpr):
    """The kept pair of a group in the 16-bit DTYPE and its code, both uint32; u: its draw."""
    first, second, h, code = choose(x0, x1, x2, x3, u)
    return _kept_pair(first, second, h, DTYPE), code


@triton.jit
def choose(x0, x1, x2, x3, u):
    """The two elements of a group that are kept, the least size of a kept one, and the code (uint32); u: the draw.

    Steps are the reference's.
    """
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
    t1 = _product(u, h)
    t2 = t1 + h
    # a <= h where the reference says not a > h: they differ where h is NaN, and there every t comparison is false.
    fits1 = _at_least(h, a1)
    both = _positive(least23)
    some = _positive(q23)
    s0 = (both | (_positive(a1) & some)) & _at_least(h, a0) & _at_least(t1, c0)
    s1 = s0 & fits1 & both & _at_least(t1, c1)
    e1 = _either(fits1, some & _at_least(t2, c1), s0)
    e2 = e1 & _either(_at_least(h, a2), _positive(a3) & _at_least(t2, c2), s1)
    b0, b1 = x0.to(tl.uint32, bitcast=True), x1.to(tl.uint32, bitcast=True)
    b2, b3 = x2.to(tl.uint32, bitcast=True), x3.to(tl.uint32, bitcast=True)
    first = _either(s1, b2, _either(s0, b1, b0)).to(tl.float32, bitcast=True)
    second = _either(e2, b3, _either(e1, b2, b1)).to(tl.float32, bitcast=True)
    # first | second << 2 with first = number of s, second = 1 + number of e; a mask is minus one.
    return first, second, h, 4 - (s0 + s1) - 4 * (e1 + e2)
