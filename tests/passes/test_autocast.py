"""Layers compute in the dtype that autocast, or the user's own casts, give them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import ffns
from tests.masked import gradients, masked_call
from tests.passes.harness import Capture, input_of, train_step


class T5Ffn(nn.Module):
    """T5's: the hidden activation is cast to the dtype of the last weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(ffns.D, ffns.H, bias=False), nn.Linear(ffns.H, ffns.D, bias=False)

    def forward(self, x):
        h = F.dropout(F.relu(self.wi(x)), 0.1, False)
        if h.dtype != self.wo.weight.dtype:
            h = h.to(self.wo.weight.dtype)
        return self.wo(h)


def _autocast_check(model: nn.Module, capture: Capture, x: torch.Tensor) -> None:
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        y, dx = train_step(torch.compile(model, backend=capture), x)
        found = gradients(model)
        expected, expected_dx = train_step(lambda x: masked_call(model, capture.masks, x), x)
    wanted = gradients(model)
    assert y.dtype == expected.dtype
    close = {"rtol": 2**-6, "atol": 2**-5}  # a few roundings to 8 bits of mantissa, sums of up to 64 terms
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(dx, expected_dx, **close)
    for name, grad in wanted.items():
        assert found[name].dtype == grad.dtype == torch.float32
        scale = grad.abs().max()
        torch.testing.assert_close(found[name] / scale, grad / scale, **close)


@pytest.mark.parametrize(
    "name",
    [
        "act_gelu",
        "residual",
        "residual_gated",
        "gated_one_bias",
        "linear_conv1d",
        "linear_late_bias",
        "linear_T_matmul",
        "split_chunk",
    ],
)
def test_compute_in_the_dtype_of_autocast(name):
    torch.manual_seed(0)
    model, capture = ffns.TAKEN[name].make(), Capture()
    _autocast_check(model, capture, input_of())
    assert capture.linears == ffns.TAKEN[name].linears
    assert {request.dtype for request in capture.rewrites[0].operands} == {torch.bfloat16}


def test_drop_the_round_trip_of_t5_under_autocast():
    torch.manual_seed(0)
    model, capture = T5Ffn(), Capture()
    _autocast_check(model, capture, input_of())
    casts = [node for node in capture.nodes if node.target == "to"]
    assert [node.args[0].name for node in casts] == ["l_x_"], "only x is cast, to bfloat16"


def test_respect_an_fp32_projection_in_a_bf16_model():
    torch.manual_seed(0)
    model, capture = T5Ffn().bfloat16(), Capture()
    model.wo.float()
    torch._dynamo.reset()
    x = input_of(dtype=torch.bfloat16)
    y = torch.compile(model, backend=capture)(x)
    assert y.dtype == torch.float32
    assert [request.dtype for request in capture.rewrites[0].operands] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(y, masked_call(model, capture.masks, x), rtol=1e-5, atol=1e-2)


class Islands(nn.Module):
    """Autocast regions inside the traced code: a bf16 layer, then a disabled island."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = ffns.Gated(F.silu, bias=(True, True, True)), ffns.Plain(F.gelu)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.low(x)
            with torch.autocast("cpu", enabled=False):
                return self.high(y.float())


def test_follow_autocast_regions_inside_the_graph():
    torch.manual_seed(0)
    model, capture = Islands(), Capture()
    torch._dynamo.reset()
    x = input_of()
    y = torch.compile(model, backend=capture)(x)
    dtypes = [request.dtype for request in capture.rewrites[0].operands]
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2
    torch.testing.assert_close(y, masked_call(model, capture.masks, x), rtol=2**-6, atol=2**-6)
