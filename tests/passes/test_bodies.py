"""Layers in the bodies of higher-order ops: activation checkpointing, nested, and regions that layers share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import s24compile
from tests import ffns
from tests.masked import masked_call
from tests.passes.harness import Capture, check_masked, input_of
from tests.passes.stacks import Stack, checkpointed, nested

FALCON = lambda: ffns.Plain(F.gelu, lambda i, o: ffns.Spelled(lambda x, w, b: x @ w.T + b, i, o))  # noqa: E731


@pytest.mark.parametrize("wrap", [checkpointed, nested])
@pytest.mark.parametrize(
    "make",
    [FALCON, *(ffns.TAKEN[n].make for n in ("act_gelu", "linear_conv1d", "product_torch", "act_gelu_bloom_function"))],
)
def test_enter_checkpoint_bodies(make, wrap):
    torch.manual_seed(0)
    model, capture = Stack(make(), make(), wrap=wrap), Capture()
    check_masked(model, capture, input_of(), reference=Stack(*model.Blocks))
    assert capture.linears == 2 * len([p for p in make().parameters() if p.dim() == 2])
    assert [site.path for site in capture.sites] == ["Blocks.0", "Blocks.1"]
    assert all(name.startswith(site.path) for site in capture.sites for name in site.weights)


class Region(nn.Module):
    """One layer of a nested compile region, whose body is shared between layers."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ffn = ffn

    @torch.compiler.nested_compile_region
    def forward(self, x):
        return self.ffn(x)


@pytest.mark.parametrize("name", ["act_gelu", "product_torch"])
def test_share_a_body_between_its_calls(name):
    torch.manual_seed(0)
    make = ffns.TAKEN[name].make
    model, capture = Stack(*(Region(make()) for _ in range(3))), Capture()
    x = input_of()
    torch._dynamo.reset()
    y = torch.compile(model, backend=capture)(x)
    expected = masked_call(model, capture.masks, x)
    torch.testing.assert_close(y, expected)
    (rewrite,) = capture.rewrites
    assert len({request.weights for request in rewrite.operands}) == len(rewrite.operands) == 6
    weights = {name for name, p in model.named_parameters() if p.dim() == 2}
    assert {name for site in capture.sites for name in site.weights} == weights


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_turn_regions_dense(layers, inner):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = Stack(*(Region(ffns.Plain(F.gelu)) for _ in range(layers))), input_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    options = {"inner": inner, "min_speedup": 0.0, "dense_after": 2}
    compiled = torch.compile(model, backend="s24", options=options)
    for _ in range(3):
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {weight.phase for weight in s24compile.sparse_weights(model).values()} == {"dense"}
    torch.testing.assert_close(compiled(x), model(x))
