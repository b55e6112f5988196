"""The polynomials of activations.cuh against fp64, evaluated in fp32 as the GPU does: within what bf16 can tell."""

import math
import re

import numpy as np
import pytest

from s24compile.kernels.gemm.cutlass import objects

TEMPLATE = (objects.HERE / "activations.cuh").read_text()
Z = np.concatenate([np.linspace(-12, 12, 48001), [0.0, -0.0, 1e-8, -1e-8, 40.0, -40.0]])


def coefficients(fit, function):
    """The numbers that `fit`'s `function` passes to horner."""
    body = TEMPLATE.partition(f"struct {fit} ")[2].partition("};")[0].partition(f"float {function}(")[2]
    return [np.float32(number) for number in re.findall(r"-?\d+\.\d+", body.partition(";")[0])]


def horner(x, numbers):
    total = np.full_like(x, numbers[-1])
    for number in numbers[-2::-1]:
        total = (total.astype(np.float64) * x + number).astype(np.float32)  # fma: one rounding
    return total


def tail_argument(z):
    return np.minimum(np.abs(z), np.float32(5.5))


def forward(fit, z):
    t = tail_argument(z)
    return np.maximum(z, np.float32(0)) - t * np.exp2(-horner(t, coefficients(fit, "tail")))


def density(t):
    return np.exp2(np.float32(-0.72134752) * t * t - np.float32(1.32574806))


def slope(fit, z):
    t = tail_argument(z)
    return np.float32(0.5) + np.copysign(np.float32(0.5) - density(t) * horner(t, coefficients(fit, "slope")), z)


def both(fit, z):
    """Value and slope as a gated layer's backward pass computes them together."""
    t = tail_argument(z)
    if fit == "ErfFit":
        phi = density(t)
        s = phi * horner(t, coefficients(fit, "slope"))
        q = phi * t + s
    else:
        q = np.exp2(-horner(t, coefficients(fit, "tail")))
        cubic, linear = map(np.float32, re.findall(r"float tu = t \* fmaf\((\S+)f, t \* t, (\S+)f\)", TEMPLATE)[0])
        s = q * (np.float32(1) + (q - np.float32(1)) * t * (cubic * t * t + linear))
    return np.maximum(z, np.float32(0)) - t * q, np.float32(0.5) + np.copysign(np.float32(0.5) - s, z)


def exact(fit, z):
    """(gelu, gelu') in fp64."""
    if fit == "ErfFit":
        cdf = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])
        return z * cdf, cdf + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    k, c = math.sqrt(8 / math.pi), 0.044715
    with np.errstate(over="ignore"):
        cdf = 1 / (1 + np.exp(-k * z * (1 + c * z * z)))
    return z * cdf, cdf + z * cdf * (1 - cdf) * k * (1 + 3 * c * z * z)


@pytest.mark.parametrize("fit", ["ErfFit", "TanhFit"])
def test_stay_below_what_bf16_can_tell(fit):
    z = Z.astype(np.float32)
    h, d = exact(fit, z.astype(np.float64))
    assert np.all(np.abs(forward(fit, z) - h) <= 4e-5 + np.abs(h) * 2.0**-11)
    assert np.all(np.abs(slope(fit, z) - d) <= 1e-4)
    value, derivative = both(fit, z)
    assert np.all(np.abs(value - h) <= 4e-5 + np.abs(h) * 2.0**-11)
    assert np.all(np.abs(derivative - d) <= 1.3e-4)


@pytest.mark.parametrize("fit", ["ErfFit", "TanhFit"])
def test_keep_the_negative_tail_relatively_exact(fit):
    """Where tanh-based forms lose whole per cents."""
    z = np.linspace(-4, -0.01, 4001).astype(np.float32)
    h, _ = exact(fit, z.astype(np.float64))
    assert np.all(np.abs(forward(fit, z) / h - 1) <= 2.0**-9)
    assert np.all(np.abs(both(fit, z)[0] / h - 1) <= 2.0**-9)


@pytest.mark.parametrize("fit", ["ErfFit", "TanhFit"])
def test_pass_on_infinities_and_zero(fit):
    z = np.array([np.inf, -np.inf, 0.0], dtype=np.float32)
    h = forward(fit, z)
    assert h[0] == np.inf
    assert abs(h[1]) < 1e-6
    assert h[2] == 0.0
    assert np.allclose(slope(fit, z), [1.0, 0.0, 0.5], atol=1e-4)
