"""What benchmarks/activation.py checks before it times: right layers pass, others don't."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from benchmarks import activation
from benchmarks.activation_cases import all_cases
from benchmarks.training import Variant
from s24compile.weights.activation_stats import activation_stats

OPTIONS = {**activation.SPARSE, "inner": "aot_eager"}


def case(act: str, bias: bool, backend: str, device: str, **options):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = activation.SquaredRelu(64, 256, act, bias).to(device), torch.randn(512, 64, device=device)
    activation.thin_out_(model, x)
    more: dict[str, Any] = {"options": {**OPTIONS, **options}} if backend == "s24" else {}
    run = torch.compile(model, backend=backend, dynamic=False, **more)
    return Variant("it", model, run, False), x.requires_grad_()


@pytest.mark.parametrize("gradient", ["dense", "mvue"])
@pytest.mark.parametrize(("act", "bias"), [("relu2", False), ("relu", True)])
def test_pass_what_computes_right(act, bias, gradient, device):
    variant, x = case(act, bias, "s24", device, gradient=gradient)
    errors = activation.check(variant, x, exact=gradient == "dense")
    assert set(errors) == {"y", "dx", *dict(variant.module.named_parameters())}
    (found,) = activation_stats(variant.module).values()
    assert found.nonzero == pytest.approx(activation.POSITIVE, abs=0.01)


def test_fail_what_is_dense(device):
    with pytest.raises(AssertionError, match="no 2:4 hidden state"):
        activation.check(*case("relu2", False, "aot_eager", device), exact=True)


def test_fail_what_computes_something_else(device):
    variant, x = case("relu2", False, "s24", device, gradient="dense")
    right = variant.run
    wrong = dataclasses.replace(variant, run=lambda x: 1.1 * right(x))
    with pytest.raises(AssertionError, match="is off by"):
        activation.check(wrong, x, exact=True)


def test_count_the_bytes_of_each_pass():
    cases = {(c.name, c.shape): c.bytes for c in all_cases(16384, [5120], "relu2")}
    assert cases["activation_pack", "16384x5120"] == 16384 * 5120 * 3.125
    assert cases["activation_backward_pack", "16384x5120"] == 16384 * 5120 * 6.375
    assert cases["activation_backward_pack, 0 estimates", "16384x5120"] == 16384 * 5120 * 4.125
