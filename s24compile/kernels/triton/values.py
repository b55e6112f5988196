"""Values on their way to the 2:4 formats, as Triton device functions: taken apart, rounded, chosen, put together.

A tile is held as [P, Q] tensors, one per row or column of a 4x4 block (P, Q count blocks), so that everything about
a group is register arithmetic; only the stores (triton/store.py) change layout.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Under TRITON_INTERPRET=1 there is no PTX; device functions with assembly say the same in plain operations."""


@triton.jit
def quarters(x, P: tl.constexpr, Q: tl.constexpr):
    """Splits x [P, 4Q] into its four columns modulo 4, each [P, Q]."""
    return fourths(tl.reshape(x, (P, Q, 4)))


@triton.jit
def fourths(x):
    """Splits x [A, B, 4] into four [A, B]."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def eighths(x):
    """Splits x [A, B, 8] into eight [A, B]."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2, 2)))
    even_low, even_high = tl.split(even)
    odd_low, odd_high = tl.split(odd)
    x0, x4 = tl.split(even_low)
    x2, x6 = tl.split(even_high)
    x1, x5 = tl.split(odd_low)
    x3, x7 = tl.split(odd_high)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def anchored(index, x):
    """index (int32), in the layout of the fp32 x of its shape.

    Without it the compiler computes what follows from an index in a layout of its own, and converts the results
    through shared memory. x is not used: no instruction comes of this.
    """
    if INTERPRETED:
        return index
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,f", [index, x], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def stack(a, b, c, d):
    """Stacks four [P, Q] tensors into [P, Q, 4]."""
    joined = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(joined, (a.shape[0], a.shape[1], 4))


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """x rounded to DTYPE, to nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16 and x.dtype == tl.float32:  # noqa: SIM300
        # The interpreter rounds ties and carries wrongly (seen in Triton 3.9).
        word = x.to(tl.uint32, bitcast=True)
        rounded = tl.where(x == x, (word + 0x7FFF + ((word >> 16) & 1)) >> 16, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif DTYPE == tl.bfloat16 and x.dtype == tl.float32:  # noqa: SIM300
        # Two at once: LLVM converts one by one, in the slow unit (16 a clock) instead of the fast one.
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        return x.to(DTYPE)


@triton.jit
def bits(x, DTYPE: tl.constexpr):
    """x rounded to the 16-bit DTYPE, as the low half of a uint32."""
    return narrow(x, DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def widen(x):
    """x in fp32."""
    if x.dtype == tl.bfloat16 and INTERPRETED:
        # Its own conversion is wrong for subnormal numbers (seen in Triton 3.9).
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif x.dtype == tl.bfloat16:
        # Opaque, so that LLVM keeps |x| a float operation: it would mask the sign out of the bits, at an
        # instruction each, where the hardware takes |x| as an operand for nothing.
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2
        )
    else:
        return x.to(tl.float32)


@triton.jit
def pick(a, b, c, d, selector):
    """The two kept of four 16-bit values (uint32 each) as one uint32, the first in the low half.

    selector: four nibbles, the byte numbers in a | b << 16 | c << 32 | d << 48 of the result's bytes.
    """
    # One byte permutation instead of four comparisons and four selections.
    return permute(a | (b << 16), c | (d << 16), selector)


@triton.jit
def permute(low, high, selector):
    """Four bytes of the eight of two words (uint32): byte i of the result is the one that nibble i names, below 8."""
    if INTERPRETED:
        both = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
        names = selector.to(tl.uint64)
        first = (both >> ((names & 7) * 8)) & 0xFF
        second = (both >> (((names >> 4) & 7) * 8)) & 0xFF
        third = (both >> (((names >> 8) & 7) * 8)) & 0xFF
        fourth = (both >> (((names >> 12) & 7) * 8)) & 0xFF
        return (first | (second << 8) | (third << 16) | (fourth << 24)).to(tl.uint32)
    else:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def lookup(at):
    """What pointers to int32 or uint8 point at, as uint32, in their own layout."""
    if INTERPRETED:
        return tl.load(at).to(tl.uint32)
    else:
        # tl.load would choose a layout made for long contiguous rows and convert everything computed from it.
        LOAD: tl.constexpr = (
            "ld.global.nc.u8 $0, [$1];" if at.dtype.element_ty == tl.uint8 else "ld.global.nc.b32 $0, [$1];"
        )
        return tl.inline_asm_elementwise(LOAD, "=r,l", [at.to(tl.uint64)], dtype=tl.uint32, is_pure=True, pack=1)
