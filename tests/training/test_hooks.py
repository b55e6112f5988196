"""How optimizers reach the weights: decay on the right gradients, each step counted once, whatever the loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from s24compile import errors
from s24compile.config import Config
from s24compile.training.hooks import before_step
from s24compile.weights.model_state import set_phase
from s24compile.weights.packing import freshen
from s24compile.weights.registry import WEIGHTS
from tests.calls import count_calls
from tests.freshening import operand_of

pytestmark = pytest.mark.usefixtures("on_device")

DECAY = 0.25
FST = Config(decay=DECAY)


class Seen(torch.optim.Optimizer):
    """Writes down the gradients that its step sees; moves nothing."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.grads = []

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.grads.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return loss


class Nested(Seen):
    def step(self, closure=None):
        return super().step(closure)


class Lookahead(torch.optim.Optimizer):
    """Another optimizer around one that holds the same parameters."""

    def __init__(self, base):
        super().__init__(base.param_groups, {"lr": 0.1})
        self.base = base

    def step(self, closure=None):
        return self.base.step(closure)


def sparse_parameter(config=FST, dtype=torch.float32, layout="out_in"):
    parameter = nn.Parameter(torch.randn(16, 16, dtype=dtype))
    freshen(operand_of(parameter, config=config, transpose=False, layout=layout), False)
    return parameter, WEIGHTS.get(parameter)


def forward(parameter, config=FST):
    """What a forward does for a weight: it is packed, if a step has changed it."""
    freshen(operand_of(parameter, config=config, transpose=False), False)


def expected_gradient(grad, parameter, weight, factor=DECAY):
    return grad + factor * parameter.detach() * ~weight.mask


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("kind", [Seen, Nested])
def test_decay_once_and_count_once(kind, layout):
    parameter, weight = sparse_parameter(layout=layout)
    optimizer = kind([parameter])
    grad = torch.randn(16, 16)
    parameter.grad = grad.clone()
    optimizer.step()
    torch.testing.assert_close(optimizer.grads[0][0], expected_gradient(grad, parameter, weight))
    assert weight.steps == 1


def test_decay_once_and_count_once_through_an_optimizer_around_another():
    parameter, weight = sparse_parameter()
    base = Seen([parameter])
    outer = Lookahead(base)
    for closure in (None, lambda: None):
        forward(parameter)
        grad = torch.randn(16, 16)
        parameter.grad = grad.clone()
        outer.step(closure)
        torch.testing.assert_close(base.grads[-1][0], expected_gradient(grad, parameter, weight))
    assert weight.steps == 2


@pytest.mark.parametrize("kind", [Seen, Nested])
@pytest.mark.parametrize("by_keyword", [False, True])
def test_decay_after_the_closure_has_made_the_gradients(kind, by_keyword):
    parameter, weight = sparse_parameter()
    optimizer = kind([parameter])
    grad = torch.randn(16, 16)

    def closure():
        optimizer.zero_grad()
        (parameter * grad).sum().backward()
        return 7.0

    parameter.grad = torch.full((16, 16), 100.0)
    loss = optimizer.step(closure=closure) if by_keyword else optimizer.step(closure)
    assert loss == 7.0
    torch.testing.assert_close(optimizer.grads[0][0], expected_gradient(grad, parameter, weight))
    assert weight.steps == 1


class Evaluating(Seen):
    """Evaluates its closure three times, as LBFGS does in a step, and writes down the gradients of each time."""

    def step(self, closure):
        for _ in range(3):
            super().step.__wrapped__(self, closure)


@pytest.mark.parametrize("to_none", [True, False])
def test_decay_in_each_evaluation_of_a_closure(to_none):
    parameter, weight = sparse_parameter()
    optimizer = Evaluating([parameter])
    grad = torch.randn(16, 16)

    def closure():
        optimizer.zero_grad(set_to_none=to_none)
        (parameter * grad).sum().backward()

    optimizer.step(closure)
    assert len(optimizer.grads) == 3
    for (seen,) in optimizer.grads:
        torch.testing.assert_close(seen, expected_gradient(grad, parameter, weight))
    assert weight.steps == 1


def test_count_a_step_of_lbfgs_once():
    parameter, weight = sparse_parameter()
    optimizer = torch.optim.LBFGS([parameter], max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert weight.steps == 1


@pytest.mark.parametrize("kind", [Seen, Nested])
def test_survive_a_step_that_raised(kind):
    parameter, weight = sparse_parameter()
    optimizer = kind([parameter])

    def closure():
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        optimizer.step(closure)
    assert weight.steps == 0
    grad = torch.randn(16, 16)
    parameter.grad = grad.clone()
    optimizer.step()
    torch.testing.assert_close(optimizer.grads[0][0], expected_gradient(grad, parameter, weight))
    assert weight.steps == 1


def test_decay_after_clipping():
    parameter, weight = sparse_parameter()
    optimizer = Seen([parameter])
    grad = torch.randn(16, 16) * 100
    parameter.grad = grad.clone()
    torch.nn.utils.clip_grad_norm_([parameter], 1.0)
    clipped = parameter.grad.clone()
    optimizer.step()
    torch.testing.assert_close(optimizer.grads[0][0], expected_gradient(clipped, parameter, weight))


def test_decay_towards_zero_also_when_maximising():
    parameter, weight = sparse_parameter()
    optimizer = torch.optim.SGD([parameter], lr=1.0, maximize=True)
    before = parameter.detach().clone()
    parameter.grad = torch.zeros(16, 16)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - DECAY * before * ~weight.mask)


def scaled_step(optimizer, parameter, loss_of, scale=1024.0):
    scaler = torch.amp.GradScaler(parameter.device.type, init_scale=scale)
    optimizer.zero_grad()
    scaler.scale(loss_of(parameter)).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("fused", [False, True])
def test_decay_in_the_unit_of_the_gradients_under_a_grad_scaler(fused):
    parameter, weight = sparse_parameter()
    plain = nn.Parameter(parameter.detach().clone())
    grad = torch.randn(16, 16)
    plain.grad = expected_gradient(grad, parameter, weight)
    # SGD, not Adam, which would hide a wrong scale.
    torch.optim.SGD([plain], lr=0.1, fused=fused).step()
    scaled_step(torch.optim.SGD([parameter], lr=0.1, fused=fused), parameter, lambda p: (p * grad).sum())
    torch.testing.assert_close(parameter, plain)


@pytest.mark.parametrize("recipe", ["fst", "srste"])
@pytest.mark.parametrize("fused", [False, True])
def test_change_nothing_in_a_step_that_the_scaler_skips(fused, recipe):
    parameter, _ = sparse_parameter(Config(recipe=recipe, decay=DECAY))
    before = parameter.detach().clone()
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=fused)
    scaled_step(optimizer, parameter, lambda p: (p * torch.full((16, 16), float("inf"))).sum())
    assert torch.equal(parameter, before)


def test_decay_after_an_explicit_unscale_with_a_fused_optimizer():
    parameter, weight = sparse_parameter()
    before = parameter.detach().clone()
    grad = torch.randn(16, 16)
    scaler = torch.amp.GradScaler(parameter.device.type, init_scale=1024.0)
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=True)
    scaler.scale((parameter * grad).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    expected = before - 0.1 * (grad + DECAY * before * ~weight.mask)
    torch.testing.assert_close(parameter.detach(), expected)


def test_never_decay_in_the_dense_phase():
    parameter, weight = sparse_parameter()
    module = nn.Module()
    module.weight = parameter
    set_phase(module, "dense")
    optimizer = Seen([parameter])
    grad = torch.randn(16, 16)
    parameter.grad = grad.clone()
    optimizer.step()
    assert torch.equal(optimizer.grads[0][0], grad)
    assert weight.steps == 1, "the schedule goes on"


@pytest.mark.parametrize("recipe", ["sste", "ste", "step"])
def test_leave_gradients_alone_in_recipes_without_decay(recipe):
    parameter, _ = sparse_parameter(Config(recipe=recipe, decay=DECAY))
    optimizer = Seen([parameter])
    grad = torch.randn(16, 16)
    parameter.grad = grad.clone()
    optimizer.step()
    assert torch.equal(optimizer.grads[0][0], grad)


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)])
def test_decay_weights_by_the_learning_rate_in_srste(rate):
    parameter, weight = sparse_parameter(Config(recipe="srste", decay=DECAY))
    optimizer = torch.optim.AdamW([parameter], lr=rate, weight_decay=0.0, foreach=False)
    before = parameter.detach().clone()
    parameter.grad = torch.zeros(16, 16)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 0.5 * DECAY * before * ~weight.mask)


def test_refuse_srste_without_a_learning_rate():
    parameter, _ = sparse_parameter(Config(recipe="srste"))

    class NoRate(torch.optim.Optimizer):
        def step(self, closure=None):
            raise AssertionError("the pre-hook has refused before")

    parameter.grad = torch.randn(16, 16)
    with pytest.raises(errors.OptionError, match="learning rate"):
        NoRate([parameter], {}).step()


def test_pass_over_missing_gradients_and_take_other_dtypes():
    parameter, weight = sparse_parameter(dtype=torch.bfloat16)
    bystander = nn.Parameter(torch.randn(3))
    optimizer = torch.optim.SGD([parameter, bystander], lr=0.1)
    optimizer.step()
    assert weight.steps == 1
    seen = Seen([parameter])
    forward(parameter)
    grad = torch.randn(16, 16, dtype=torch.bfloat16)
    parameter.grad = grad.clone()
    seen.step()
    wide = grad.float() + DECAY * parameter.detach().float() * ~weight.mask
    assert seen.grads[0][0].dtype == torch.bfloat16
    torch.testing.assert_close(seen.grads[0][0].float(), wide, rtol=2**-8, atol=0.0)  # one rounding to bf16


def test_refuse_gradients_that_are_not_dense():
    parameter, _ = sparse_parameter()
    parameter.grad = torch.randn(16, 16).to_sparse()
    with pytest.raises(errors.ModelError, match="sparse_coo"):
        torch.optim.SGD([parameter], lr=0.1).step()


def test_see_parameters_and_weights_that_come_later():
    parameter, weight = sparse_parameter()
    first = nn.Parameter(torch.randn(16, 16))
    optimizer = Seen([first])
    first.grad = torch.zeros(16, 16)
    optimizer.step()
    optimizer.add_param_group({"params": [parameter]})
    parameter.grad = torch.zeros(16, 16)
    optimizer.step()
    assert weight.steps == 1
    freshen(operand_of(first, config=FST), False)
    optimizer.step()
    assert weight.steps == 2
    assert WEIGHTS.get(first).steps == 1


class NestedSGD(torch.optim.SGD):
    def step(self):
        return super().step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, NestedSGD])
def test_decay_and_count_once_under_a_compiled_step(kind):
    parameter, weight = sparse_parameter()
    compiled = torch.compile(kind([parameter], lr=1.0).step, backend="eager")
    for i in range(3):
        forward(parameter)
        before = parameter.detach().clone()
        parameter.grad = torch.zeros(16, 16)
        compiled()
        torch.testing.assert_close(parameter.detach(), before - DECAY * before * ~weight.mask)
        assert weight.steps == i + 1


def test_cost_nothing_for_optimizers_without_sparse_weights():
    torch.set_default_device(None)  # its mode would be called too
    sparse_parameter()
    optimizer = torch.optim.SGD([nn.Parameter(torch.randn(4)) for _ in range(300)], lr=0.1)
    call = (optimizer, (optimizer,), {})
    before_step(*call)  # looks at each of them once
    assert count_calls(lambda: before_step(*call)) < 60, "300 ids are compared, without a call for each"
