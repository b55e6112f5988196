"""Activations and their derivatives in fp32, as Triton device functions; the formulas are glu/reference.py's."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normal_cdf(a):
    return 0.5 + 0.5 * tl.erf(a * 0.7071067811865476)


@triton.jit
def _tanh_sigmoid(a):
    """0.5 (1 + tanh(sqrt(2/pi) (a + 0.044715 a^3))), which is a sigmoid of twice the argument."""
    return tl.sigmoid(1.5957691216057308 * a * (1.0 + 0.044715 * a * a))


@triton.jit
def activate(a, ACT: tl.constexpr):
    """act(a)."""
    if ACT == "gelu":
        return a * _normal_cdf(a)
    elif ACT == "gelu_tanh":
        return a * _tanh_sigmoid(a)
    elif ACT == "silu":
        return a * tl.sigmoid(a)
    else:
        return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def activate_with_slope(a, ACT: tl.constexpr):
    """(act(a), act'(a)); the shared factor is computed once."""
    if ACT == "gelu":
        cdf = _normal_cdf(a)
        return a * cdf, cdf + a * (tl.exp(-0.5 * a * a) * 0.3989422804014327)
    elif ACT == "gelu_tanh":
        sigmoid = _tanh_sigmoid(a)
        slope = 1.5957691216057308 * (1.0 + 0.134145 * a * a)
        return a * sigmoid, sigmoid + a * sigmoid * (1.0 - sigmoid) * slope
    elif ACT == "silu":
        sigmoid = tl.sigmoid(a)
        return a * sigmoid, sigmoid * (1.0 + a * (1.0 - sigmoid))
    else:
        return tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL), tl.where(a > 0, 1.0, 0.0)
