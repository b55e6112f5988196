"""Layers in autograd.Functions that Dynamo cannot trace: one arithmetic in forward and backward, or a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import s24compile
from s24compile import errors
from tests.masked import gradients, live_masks, masked_call

OPTIONS = {"inner": "eager", "gradient": "dense", "decay": 0.0, "min_speedup": 0.0}


def run_again(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
    """The backward of a checkpoint, as Megatron, DeepSpeed and fairscale write it."""
    x = ctx.saved_tensors[0].detach().requires_grad_()
    with torch.enable_grad():
        y = ctx.function(x)
    torch.autograd.backward(y, grad)
    return None, x.grad


class Checkpoint(Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    backward = staticmethod(run_again)


class OfAllArguments(Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return Checkpoint.forward(*args)

    backward = staticmethod(run_again)


class OnceDifferentiable(Checkpoint):
    backward = staticmethod(once_differentiable(run_again))


class AsVjp(Function):
    forward = Checkpoint.forward
    vjp = staticmethod(run_again)


class Tiled(Checkpoint):
    """Runs the layer on parts of the tokens, one after the other, as tiled MLPs do."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(x)
        return torch.cat([function(part) for part in x.chunk(2)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        found = []
        for part, upper in zip(ctx.saved_tensors[0].chunk(2), grad.chunk(2), strict=True):
            x = part.detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.function(x)
            torch.autograd.backward(y, upper)
            found.append(x.grad)
        return None, torch.cat(found)


class Net(nn.Module):
    def __init__(self, function: Any = None) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.function = function

    def ffn(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.ffn(x) if self.function is None else self.function.apply(self.ffn, x)


def assert_masked_both_ways(model: nn.Module, run: Any, plain: nn.Module) -> None:
    """Output and gradients are those of dense arithmetic on masked weights."""
    plain.load_state_dict(model.state_dict())
    x = torch.randn(8, 16)
    y = run(x)
    y.square().sum().backward()
    got, masks = gradients(model), live_masks(model)
    assert set(masks) == {"up.weight", "down.weight"}
    expected = masked_call(plain, masks, x)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(plain).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [Checkpoint, OfAllArguments, OnceDifferentiable, AsVjp, Tiled])
def test_run_the_layers_of_a_checkpoint_2_4_both_times(function: type[Function]) -> None:
    model = Net(function)
    report = s24compile.explain(model, torch.randn(8, 16))
    assert {site.status for site in report.sites} == {"rewritten"}
    fast = torch.compile(model, backend="s24", options=OPTIONS)
    assert_masked_both_ways(model, fast, Net())


def test_run_a_checkpoint_behind_aot_autograd() -> None:
    model = Net(Checkpoint)
    fast = torch.compile(model, backend="s24", options={**OPTIONS, "inner": "aot_eager"})
    assert_masked_both_ways(model, fast, Net())


def test_run_a_checkpoint_with_the_options_of_a_decorator() -> None:
    @s24compile.sparse_ffn(**OPTIONS)
    class Decorated(Net):
        pass

    model = Decorated(Checkpoint)
    assert_masked_both_ways(model, model, Net())


def test_leave_alone_a_checkpoint_around_what_is_compiled() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.relu(self.up(x)))

    layer = Layer()
    layer.compile(backend="s24", options=OPTIONS)
    for run in (
        lambda x: Checkpoint.apply(layer, x.requires_grad_()),
        lambda x: checkpoint(layer, x.requires_grad_(), use_reentrant=True),
    ):
        assert_masked_both_ways(layer, run, Layer())


def test_evaluate_a_checkpointed_model() -> None:
    model, x = Net(Checkpoint), torch.randn(8, 16)
    fast = torch.compile(model, backend="s24", options=OPTIONS)
    with torch.no_grad():
        y = fast(x)
    plain = Net()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(y, masked_call(plain, live_masks(model), x), rtol=1e-5, atol=1e-5)


def test_call_a_checkpoint_of_dense_layers_as_it_is() -> None:
    model, plain = Net(Checkpoint), Net()
    plain.load_state_dict(model.state_dict())
    fast = torch.compile(model, backend="s24", options={**OPTIONS, "exclude": "."})
    x = torch.randn(8, 16)
    for run in (fast, plain):
        run(x).square().sum().backward()
    for ours, theirs in zip(gradients(model).values(), gradients(plain).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Formula(Function):
    """A fused layer with a backward of its own; the string keeps Dynamo from tracing it as a whole."""

    @staticmethod
    def forward(ctx: Any, tag: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, a, b)
        torch._dynamo.graph_break()
        return F.linear(torch.relu(F.linear(x, a)), b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b = ctx.saved_tensors
        h = x @ a.t()
        dz = (grad @ b) * (h > 0)
        return None, dz @ a, dz.t() @ x, grad.t() @ torch.relu(h)


class WithSetup(Function):
    """A checkpoint whose forward has no ctx."""

    @staticmethod
    def forward(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return function(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(inputs[1])

    backward = staticmethod(run_again)


class ByFormula(Net):
    def forward(self, x: Tensor) -> Tensor:
        return Formula.apply(object(), self.first(x), self.up.weight, self.down.weight)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (ByFormula, "it is an argument of the autograd.Function `Formula`, whose own backward computes with all of it"),
        (lambda: Net(WithSetup), "the autograd.Function `WithSetup`, whose backward cannot be followed"),
    ],
    ids=["formula", "setup_context"],
)
def test_leave_dense_what_a_backward_computes_in_its_own_way(make: Callable[[], Net], said: str) -> None:
    model, x = make(), torch.randn(8, 16)
    (site,) = s24compile.explain(model, x).sites
    assert (site.status, site.linears) == ("refused", 0)
    assert said in site.reason
    torch.compile(model, backend="s24", options=OPTIONS)(x).square().sum().backward()
    got = gradients(model)
    assert not s24compile.sparse_weights(model)
    model(x).square().sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(got[name], gradient, msg=name)


class Elsewhere(Net):
    """One graph of the layer, called without a gradient by an evaluation and by a Function with a formula."""

    def layer(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return self.inside(x, a, b)

    def inside(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(x, a)), b)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return CallsLayer.apply(self.layer, x, self.up.weight, self.down.weight)
        return self.layer(x, self.up.weight, self.down.weight)


class CallsLayer(Formula):
    @staticmethod
    def forward(ctx: Any, layer: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, a, b)
        return layer(x, a, b)


def test_refuse_a_formula_over_a_graph_that_is_2_4_elsewhere() -> None:
    model, x = Elsewhere(), torch.randn(8, 16)
    fast = torch.compile(model, backend="s24", options=OPTIONS)
    with torch.no_grad():
        fast(x)
    assert len(s24compile.sparse_weights(model)) == 2
    with pytest.raises(errors.ModelError, match="whose own backward computes with all of it"):
        fast(x)
