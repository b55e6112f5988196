"""Layers in one piece: the user's own autograd.Function is not looked into, and the report says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s24compile.config import Config
from tests.passes.harness import Capture, input_of


def mlp(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return F.relu(x @ up.t()).square() @ down


def derivative(dy: torch.Tensor, x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, ...]:
    z = x @ up.t()
    dz = dy @ down.t() * 2 * F.relu(z)
    flat = [t.flatten(0, -2) for t in (dz, x, F.relu(z).square(), dy)]
    return dz @ up, flat[0].t() @ flat[1], flat[2].t() @ flat[3]


@torch.library.custom_op("s24_tests::fused_relu2", mutates_args=())
def fused_relu2(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """What modded-nanogpt computes in Triton kernels."""
    return mlp(x, up, down)


@fused_relu2.register_fake
def _(x, up, down):
    return x.new_empty((*x.shape[:-1], down.shape[1]))


class Own(torch.autograd.Function):
    """Both products and the activation, with a backward of its own."""

    @staticmethod
    def forward(ctx, x, up, down):
        ctx.save_for_backward(x, up, down)
        return mlp(x, up, down)

    @staticmethod
    def backward(ctx, dy):
        return derivative(dy, *ctx.saved_tensors)


class OwnKernel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, up, down):
        ctx.save_for_backward(x, up, down)
        return torch.ops.s24_tests.fused_relu2(x, up, down)

    @staticmethod
    def backward(ctx, dy):
        return derivative(dy, *ctx.saved_tensors)


class Scale(torch.autograd.Function):
    """A Function with one matrix, as a loss with its head has."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x * weight.sum()

    @staticmethod
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        return dy * weight.sum(), None


class Layer(nn.Module):
    """Both weights stored [F, D]."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        self.function = function
        self.c_fc, self.c_proj = nn.Parameter(torch.randn(64, 32) / 8), nn.Parameter(torch.randn(64, 32) / 8)

    def forward(self, x):
        return self.function.apply(x, self.c_fc, self.c_proj.to(x.dtype))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 64))

    def forward(self, x):
        return Scale.apply(x, self.weight)


@pytest.mark.parametrize("recipe", ["activation", "fst"])
@pytest.mark.parametrize(
    ("function", "family", "reason"),
    [
        (Own, "unknown", "it is in the body of `autograd_function_apply`, which is not rewritten"),
        (OwnKernel, "custom", "an autograd.Function computes the whole layer in one piece, which is not looked into"),
    ],
)
def test_say_that_a_function_of_the_user_s_own_is_not_rewritten(function, family, reason, recipe):
    torch._dynamo.reset()
    model, capture = Layer(function), Capture(Config(recipe=recipe))
    torch.compile(model, backend=capture)(input_of())
    (site,) = capture.sites
    assert (site.status, site.family) == ("refused", family)
    assert reason in site.reason
    assert "spell it F.linear, activation, F.linear" in site.reason
    assert site.weights == ("c_fc", "c_proj")


def test_list_nothing_for_a_function_with_one_matrix():
    torch._dynamo.reset()
    capture = Capture()
    torch.compile(Head(), backend=capture)(input_of())
    assert not capture.sites
