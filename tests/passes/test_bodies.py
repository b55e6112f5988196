"""Layers in the bodies of higher-order ops: activation checkpointing, nested, and regions that layers share."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._higher_order_ops.scan import scan
from torch.utils.checkpoint import checkpoint

import s24compile
from s24compile.config import Config
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


def in_checkpoint(function, *args):
    return checkpoint(function, *args, use_reentrant=False)


class Cut(ffns.Plain):
    """A layer of which parts are run by `inside`: in a checkpoint, or as they are."""

    def __init__(self, parts, inside=in_checkpoint) -> None:
        super().__init__(F.gelu)
        self.parts, self.inside = parts, inside

    def forward(self, x):
        return self.parts(self, x)


CUTS = {
    "up": lambda m, x: m.fc2(F.gelu(m.inside(m.fc1, x))),
    "up_and_activation": lambda m, x: m.fc2(m.inside(lambda x: F.gelu(m.fc1(x)), x)),
    "activation": lambda m, x: m.fc2(m.inside(F.gelu, m.fc1(x))),
    "activation_and_down": lambda m, x: m.inside(lambda h: m.fc2(F.gelu(h)), m.fc1(x)),
    "two_bodies": lambda m, x: m.inside(m.fc2, m.inside(lambda x: F.gelu(m.fc1(x)), x)),
    "computed_weight": lambda m, x: m.fc2(F.gelu(m.inside(F.linear, x, m.fc1.weight * 0.5))),
}


@pytest.mark.parametrize("targets", ["ffn", "linear"])
def test_name_layers_that_a_body_cuts_in_two(targets):
    torch.manual_seed(0)
    model = Stack(*(Cut(parts) for parts in CUTS.values()))
    plain = Stack(*(Cut(parts, lambda function, *args: function(*args)) for parts in CUTS.values()))
    for ours, theirs in zip(model.Blocks, plain.Blocks, strict=True):
        theirs._modules = ours._modules
    capture = Capture(config=Config(targets=targets))
    check_masked(model, capture, input_of(), reference=plain)
    names = [f"Blocks.{i}.{which}.weight" for i in range(len(CUTS)) for which in ("fc1", "fc2")]
    assert sorted(name for site in capture.sites for name in site.weights) == names
    if targets == "ffn":
        assert capture.linears == 0
        assert all("only a part of it is in the body of `tag_activation_checkpoint`" in s.reason for s in capture.sites)
    else:
        assert set(names) - capture.masks.keys() == {"Blocks.5.fc1.weight"}


def opaque(x, a, b):
    return F.linear(F.relu(F.linear(x, a)), b)


torch.compiler.allow_in_graph(opaque)


class Mlp(torch.autograd.Function):
    """A layer with a backward of its own."""

    @staticmethod
    def forward(ctx, x, a, b):
        ctx.save_for_backward(x, a, b)
        return F.relu(x @ a.t()) @ b.t()

    @staticmethod
    def backward(ctx, grad):
        x, a, b = ctx.saved_tensors
        h = x @ a.t()
        dz = (grad @ b) * (h > 0)
        return dz @ a, dz.t() @ x, grad.t() @ F.relu(h)


def _maybe(m, x):
    return torch.cond(x.sum() > -1e9, lambda t: m.fc2(F.gelu(m.fc1(t))), lambda t: t.clone(), (x,))


def _scanned(m, x):
    return scan(lambda carry, t: (carry + 1, m.fc2(F.gelu(m.fc1(t)))), x.sum() * 0, x)[1]


BODIES = {
    "cond": _maybe,
    "scan": _scanned,
    "autograd_function_apply": lambda m, x: Mlp.apply(x, m.fc1.weight, m.fc2.weight),
    "opaque": lambda m, x: opaque(x, m.fc1.weight, m.fc2.weight),
}


@pytest.mark.parametrize("name", BODIES)
def test_name_the_weights_of_bodies_that_nobody_enters(name):
    torch._dynamo.reset()
    model, capture = Cut(BODIES[name]), Capture()
    torch.compile(model, backend=capture)(input_of(8).detach())
    (site,) = capture.sites
    assert site.status == "refused"
    assert site.weights == ("fc1.weight", "fc2.weight")
    assert f"`{name}`" in site.reason
