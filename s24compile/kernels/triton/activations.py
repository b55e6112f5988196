"""Activations and their derivatives in fp32, as Triton device functions; the formulas are those of activations.py.

FAST is for 16-bit tensors, whose rounding hides it (relative errors near 2**-21 against 2**-9): hardware
approximations of exp2 and of the reciprocal, and a normal distribution that shares its exponential with the density.
The gradient kernels need it: they would wait for arithmetic, not for memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.values import INTERPRETED


@triton.jit
def _exp(x, FAST: tl.constexpr):
    if FAST and not INTERPRETED:
        # tl.exp also scales for subnormal results, at four instructions.
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * 1.4426950408889634], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp(x)


@triton.jit
def _reciprocal(x, FAST: tl.constexpr):
    if FAST and not INTERPRETED:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def _sigmoid(x, FAST: tl.constexpr):
    return _reciprocal(1.0 + _exp(-x, FAST), FAST)


@triton.jit
def _tanh_sigmoid(a, FAST: tl.constexpr):
    """0.5 (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))), which is a sigmoid of twice the argument."""
    return _sigmoid(1.5957691216057308 * a * (1.0 + 0.044715 * a * a), FAST)


@triton.jit
def _rest(sigmoid, a, FAST: tl.constexpr):
    """1 - _tanh_sigmoid(a). In fp32 the difference would lose what the derivative multiplies by a^3."""
    if FAST:
        return 1.0 - sigmoid
    else:
        return _tanh_sigmoid(-a, FAST)


@triton.jit
def _normal(a, FAST: tl.constexpr):
    """(Phi(a), phi(a) sqrt(2 pi)) of the normal distribution."""
    density = _exp(-0.5 * a * a, FAST)
    if FAST:
        # erfc by Abramowitz and Stegun 7.1.26, |error| < 1.5e-7, in |a| / sqrt(2).
        t = _reciprocal(1.0 + 0.23164190 * tl.abs(a), FAST)
        tail = (
            t
            * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (-0.7265760135 + t * 0.5307027145))))
            * density
        )
        return tl.where(a < 0, tail, 1.0 - tail), density
    else:
        return 0.5 + 0.5 * tl.erf(a * 0.7071067811865476), density


@triton.jit
def activate(a, ACT: tl.constexpr, FAST: tl.constexpr):
    """act(a)."""
    if ACT == "gelu":
        return a * _normal(a, FAST)[0]
    elif ACT == "gelu_tanh":
        return a * _tanh_sigmoid(a, FAST)
    elif ACT == "silu":
        return a * _sigmoid(a, FAST)
    else:
        tl.static_assert(ACT == "relu", "no formula is written for this activation")
        return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate_with_slope(a, ACT: tl.constexpr, FAST: tl.constexpr):
    """(act(a), act'(a)); the shared factor is computed once."""
    if ACT == "gelu":
        cdf, density = _normal(a, FAST)
        return a * cdf, cdf + a * (density * 0.3989422804014327)
    elif ACT == "gelu_tanh":
        sigmoid = _tanh_sigmoid(a, FAST)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * a * a)
        value = a * sigmoid
        return value, sigmoid + value * _rest(sigmoid, a, FAST) * slope
    elif ACT == "silu":
        sigmoid = _sigmoid(a, FAST)
        value = a * sigmoid
        return value, sigmoid + value * (1.0 - sigmoid)
    else:
        tl.static_assert(ACT == "relu", "no formula is written for this activation")
        return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL), tl.where(a > 0, 1.0, 0.0)
