"""Layers in one piece: the user's own autograd.Function is not looked into, and the report says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s24compile.config import Config
from tests.passes.harness import Capture, input_of


class FusedReluSquared(torch.autograd.Function):
    """What modded-nanogpt does with a Triton kernel: both products and the activation, with a backward of its own."""

    @staticmethod
    def forward(ctx, x, up, down):
        z = x @ up.t()
        h = F.relu(z).square()
        ctx.save_for_backward(x, up, down, z, h)
        return h @ down

    @staticmethod
    def backward(ctx, dy):
        x, up, down, z, h = ctx.saved_tensors
        dz = dy @ down.t() * 2 * F.relu(z)
        flat = [t.flatten(0, -2) for t in (dz, x, h, dy)]
        return dz @ up, flat[0].t() @ flat[1], flat[2].t() @ flat[3]


class Scale(torch.autograd.Function):
    """A Function with one matrix, as a loss with its head has."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        return dy @ weight.t(), None


class Own(nn.Module):
    """Both weights stored [F, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Parameter(torch.randn(64, 32) / 8), nn.Parameter(torch.randn(64, 32) / 8)

    def forward(self, x):
        return FusedReluSquared.apply(x, self.c_fc, self.c_proj.to(x.dtype))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 64))

    def forward(self, x):
        return Scale.apply(x, self.weight)


@pytest.mark.parametrize("recipe", ["activation", "fst"])
def test_say_that_a_function_of_the_user_s_own_is_not_looked_into(recipe):
    torch._dynamo.reset()
    model, capture = Own(), Capture(Config(recipe=recipe))
    torch.compile(model, backend=capture)(input_of())
    (site,) = capture.sites
    assert (site.status, site.family, site.shape) == ("refused", "custom", "32 -> 64 -> 32")
    assert "an autograd.Function computes the whole layer in one piece" in site.reason
    assert site.weights == ("c_fc", "c_proj")


def test_list_nothing_for_a_function_with_one_matrix():
    torch._dynamo.reset()
    capture = Capture()
    torch.compile(Head(), backend=capture)(input_of())
    assert not capture.sites
