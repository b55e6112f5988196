"""Eight-bit floats as Triton device functions: `scaling.py`'s arithmetic to the bit. Bytes are uint8, or within uint32.

KIND names the dtype: "e4m3" or "e5m2".
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from s24compile.kernels.triton.values import INTERPRETED

KINDS = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


@triton.jit
def scale_from(amax, HEADROOM: tl.constexpr, KIND: tl.constexpr):
    """What a tensor is multiplied by, from its amax (fp32, 0-d)."""
    LIMIT: tl.constexpr = 448.0 if KIND == "e4m3" else 57344.0
    scale = tl.minimum(tl.div_rn(tl.full(amax.shape, LIMIT / HEADROOM, tl.float32), amax), 8.507059173023462e37)
    return tl.where((amax > 0) & (amax < float("inf")), scale, 1.0)


@triton.jit
def inverse(scale):
    """1 / scale, correctly rounded."""
    return tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)


@triton.jit
def scaled(x, scale):
    """x scale; NaN where x is Inf or NaN."""
    # The second product is 0 or NaN: no cast after this needs to look at x.
    return x * scale + x * 0.0


@triton.jit
def _encoded(x, KIND: tl.constexpr):
    """The byte (uint32) of x, rounded to nearest even and saturated, in plain operations."""
    word = x.to(tl.uint32, bitcast=True)
    size = tl.minimum(tl.abs(x), 448.0 if KIND == "e4m3" else 57344.0)
    bits = size.to(tl.uint32, bitcast=True)
    # Bits of the mantissa that go; what the exponent's bias becomes; a number whose last bit is worth the least step.
    DROPPED: tl.constexpr = 20 if KIND == "e4m3" else 21
    LEAST: tl.constexpr = 0x3C800000 if KIND == "e4m3" else 0x38800000  # 2^-6, 2^-14: the smallest normal number
    CARRIER: tl.constexpr = 0x46800000 if KIND == "e4m3" else 0x43000000  # 2^14, 2^7
    BIAS: tl.constexpr = 120 << 3 if KIND == "e4m3" else 112 << 2
    normal = ((bits + (1 << (DROPPED - 1)) - 1 + ((bits >> DROPPED) & 1)) >> DROPPED) - BIAS
    carrier = tl.full(x.shape, CARRIER, tl.uint32)
    subnormal = (size + carrier.to(tl.float32, bitcast=True)).to(tl.uint32, bitcast=True) - CARRIER
    byte = tl.where(bits < LEAST, subnormal, normal)
    return tl.where(x == x, byte | ((word >> 24) & 0x80), 0x7F).to(tl.uint32)


@triton.jit
def to_bytes(x, KIND: tl.constexpr):
    """x as bytes (uint8), rounded to nearest even and saturated; four neighbours are converted at once."""
    if INTERPRETED:
        return _encoded(x, KIND).to(tl.uint8)
    else:
        CONVERT: tl.constexpr = "cvt.rn.satfinite." + KIND + "x2.f32"
        return tl.inline_asm_elementwise(
            "{ .reg .b16 l, h; " + CONVERT + " l, $2, $1; " + CONVERT + " h, $4, $3; mov.b32 $0, {l, h}; }",
            "=r,f,f,f,f",
            [x],
            dtype=tl.uint8,
            is_pure=True,
            pack=4,
        )


@triton.jit
def byte_pair(x, y, KIND: tl.constexpr):
    """x and y as the two low bytes of a uint32, x's the lowest."""
    if INTERPRETED:
        return _encoded(x, KIND) | (_encoded(y, KIND) << 8)
    else:
        CONVERT: tl.constexpr = "cvt.rn.satfinite." + KIND + "x2.f32"
        return tl.inline_asm_elementwise(
            "{ .reg .b16 both; " + CONVERT + " both, $2, $1; cvt.u32.u16 $0, both; }",
            "=r,f,f",
            [x, y],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def byte_quad(a, b, c, d, KIND: tl.constexpr):
    """Four bytes as a uint32, a's the lowest."""
    if INTERPRETED:
        return byte_pair(a, b, KIND) | (byte_pair(c, d, KIND) << 16)
    else:
        CONVERT: tl.constexpr = "cvt.rn.satfinite." + KIND + "x2.f32"
        return tl.inline_asm_elementwise(
            "{ .reg .b16 l, h; " + CONVERT + " l, $2, $1; " + CONVERT + " h, $4, $3; mov.b32 $0, {l, h}; }",
            "=r,f,f,f,f",
            [a, b, c, d],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )


@triton.jit
def estimated_pair(x, y, h, scale, KIND: tl.constexpr):
    """What MVUE makes of kept x and y, scaled: copysign(max(|x|, h), x), NaN where h is NaN; as `byte_pair`."""
    size = tl.maximum(tl.abs(x), h, propagate_nan=tl.PropagateNan.ALL) * scale
    other = tl.maximum(tl.abs(y), h, propagate_nan=tl.PropagateNan.ALL) * scale
    both = byte_pair(size, other, KIND)
    signs = x.to(tl.uint32, bitcast=True) >> 24, y.to(tl.uint32, bitcast=True) >> 16
    return both | (signs[0] & 0x80) | (signs[1] & 0x8000)
