"""The float8 dense baseline computes what torchao's does, and both are a linear within the rounding of eight bits."""

import copy
import importlib.util
import math

import pytest
import torch
from torch import nn

from benchmarks.float8_dense import Float8Linear, convert

HALF_STEPS = {"e4m3": 2.0**-4, "e5m2": 2.0**-3}
"""Relative error of one number, at most; in norm some half of that."""


def layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32, bias=False)).bfloat16()


def run(model):
    """The output and all gradients, on the same input."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 8, 64, generator=generator).bfloat16().requires_grad_()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=generator).to(y.dtype))
    return [y, x.grad, *(p.grad for p in model.parameters())]


def scaled_mm_runs():
    try:
        run(nn.Sequential(Float8Linear(nn.Linear(64, 32).bfloat16())))
    except RuntimeError:
        return False
    return True


def test_stay_within_the_rounding_of_eight_bits():
    if not scaled_mm_runs():
        pytest.skip("torch._scaled_mm does not run on this CPU")
    dense, float8 = layers(), layers()
    assert convert(float8, own=True) == "torch._scaled_mm"
    assert [type(m) for m in float8] == [Float8Linear, nn.GELU, Float8Linear]
    limit = 2 * (2 * HALF_STEPS["e4m3"] + HALF_STEPS["e5m2"])  # two linears, each of two operands
    for found, expected in zip(run(float8), run(dense.double().bfloat16()), strict=True):
        assert found.dtype == expected.dtype
        error = ((found.float() - expected.float()).norm() / expected.float().norm()).item()
        assert 0 < error < limit
        assert math.isfinite(error)


def test_convert_what_is_accepted_and_fits():
    model = nn.ModuleDict({"up": nn.Linear(32, 64), "down": nn.Linear(64, 32), "head": nn.Linear(32, 50)})
    convert(model, lambda name: name != "down", own=True)
    assert {name: type(m) for name, m in model.items()} == {"up": Float8Linear, "down": nn.Linear, "head": nn.Linear}
    assert isinstance(model["up"].weight, nn.Parameter)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_give_the_numbers_of_torchao():
    own, theirs = layers(), copy.deepcopy(layers())
    convert(own, own=True)
    assert convert(theirs).startswith("torchao")
    for found, expected in zip(run(own), run(theirs), strict=True):
        assert torch.equal(found, expected)
