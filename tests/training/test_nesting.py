"""Steps that are parts of others, steps that are none, and steps of weights that train dense by now."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.utils import prune

from s24compile.config import Config
from s24compile.weights.model_state import load_state_dict, sparse_weights, state_dict
from tests.freshening import MLP, sparse_forward, train

pytestmark = pytest.mark.usefixtures("on_device")

DECAY = 0.25
FST = Config(decay=DECAY, gradient="dense", mask_interval=4)


class OwnGradients(torch.optim.Optimizer):
    """Computes the gradients that the one in it steps: GSAM's way."""

    def __init__(self, base: torch.optim.Optimizer, loss: Callable[[], Tensor], to_none: bool = True) -> None:
        super().__init__(base.param_groups, {})
        self.param_groups, self.base, self.loss, self.to_none = base.param_groups, base, loss, to_none

    def step(self, closure: Any = None) -> None:
        self.zero_grad(set_to_none=self.to_none)
        self.loss().backward()
        self.base.step()


class EverySecond(torch.optim.Optimizer):
    """Accumulates the gradients of two steps for one of the optimizer in it."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.calls = base, 0

    def step(self, closure: Any = None) -> None:
        self.calls += 1
        if self.calls % 2 == 0:
            self.base.step()
            self.base.zero_grad()


class Clipping(torch.optim.SGD):
    """Clips inside its step, after the hooks of it have run, and before its own update's."""

    def step(self, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 1e-3)
        return super().step(closure)


class Parts(torch.optim.Optimizer):
    """Steps the first parameter itself, and leaves the others to an optimizer in it."""

    def __init__(self, parameters: list[Any]) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.base = torch.optim.SGD(parameters[1:], lr=0.1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        first = self.param_groups[0]["params"][0]
        first.sub_(0.1 * first.grad)
        self.base.step()


def loss_of(model: MLP, x: Tensor, config: Config = FST) -> Tensor:
    return (sparse_forward(model, x, config) - x).square().mean()


def trained(
    optimizer_of: Callable[[MLP, Tensor], torch.optim.Optimizer],
    config: Config = FST,
    steps: int = 3,
    own: bool = False,
) -> MLP:
    """A model after some steps on the same batch; `own` says that the optimizer computes the gradients."""
    torch.manual_seed(0)
    model, x = MLP(), torch.randn(8, 16)
    optimizer = optimizer_of(model, x)
    for _ in range(steps):
        if not own:
            optimizer.zero_grad()
            loss_of(model, x, config).backward()
        optimizer.step()
    return model


def sgd(model: MLP, x: Tensor) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def assert_same(one: MLP, other: MLP) -> None:
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(parameter, other.get_parameter(name), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("to_none", [True, False])
def test_decay_the_gradients_that_an_optimizer_computes_in_its_step(
    to_none: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def own(model: MLP, x: Tensor) -> torch.optim.Optimizer:
        return OwnGradients(sgd(model, x), lambda: loss_of(model, x), to_none)

    outer, alone = trained(own, own=True), trained(sgd)
    assert_same(outer, alone)
    assert [w.steps for w in sparse_weights(outer).values()] == [3, 3]
    assert not [r for r in caplog.records if "without a sparse forward" in r.getMessage()], "there was one"
    without = trained(sgd, Config(decay=0.0, gradient="dense", mask_interval=4))
    assert not torch.allclose(outer.up.weight, without.up.weight)


def test_count_the_updates_of_an_optimizer_that_steps_every_second_time() -> None:
    model, x = MLP(), torch.randn(8, 16)
    optimizer = EverySecond(sgd(model, x))
    for _ in range(8):
        loss_of(model, x).backward()
        optimizer.step()
    assert [w.steps for w in sparse_weights(model).values()] == [5, 5], "4, and the first, of which nobody could know"


def test_decay_once_where_gradients_are_clipped_in_a_nested_step() -> None:
    """The first time nobody knows of the step inside, and the decay is clipped with the gradient; then it is not."""
    torch.manual_seed(0)
    model, x = MLP(), torch.randn(8, 16)
    optimizer = Clipping(model.parameters(), lr=1.0)
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        weight, before = sparse_weights(model)["up.weight"], model.up.weight.detach().clone()
        optimizer.step()
        moved = before - model.up.weight.detach()
        decayed = DECAY * before * ~weight.mask
        if step == 0:
            assert float(moved.norm()) <= 1e-3 + 1e-6
        else:
            assert float((moved - decayed).norm()) <= 1e-3 + 1e-6
            assert float(decayed.norm()) > 0.1
        assert weight.steps == step + 1


def test_decay_what_an_outer_step_updates_itself() -> None:
    def parts(model: MLP, x: Tensor) -> torch.optim.Optimizer:
        return Parts([model.up.weight, model.up.bias, model.down.weight, model.down.bias])

    assert_same(trained(parts), trained(sgd))
    assert [w.steps for w in sparse_weights(trained(parts)).values()] == [3, 3]


def test_begin_anew_after_a_nested_step_that_raised() -> None:
    model, x = MLP(), torch.randn(8, 16)
    fails = [True, False, False]

    def loss() -> Tensor:
        value = loss_of(model, x)
        if fails.pop(0):
            raise ValueError("boom")
        return value

    optimizer = OwnGradients(sgd(model, x), loss)
    with pytest.raises(ValueError, match="boom"):
        optimizer.step()
    optimizer.step()
    optimizer.step()
    assert [w.steps for w in sparse_weights(model).values()] == [2, 2]


@pytest.mark.parametrize("optimizer_of", [torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD])
def test_count_no_step_that_torch_makes_to_learn_an_optimizer_s_state(optimizer_of: Any) -> None:
    model, x = MLP(), torch.randn(8, 16)
    sparse_forward(model, x, FST)
    optimizer = optimizer_of(model.parameters(), lr=1e-2)
    state = get_optimizer_state_dict(model, optimizer)
    weights = sparse_weights(model).values()
    assert [(w.steps, w.age, w.held) for w in weights] == [(0, 0, False)] * 2
    for held in state["state"].values():
        assert all(float(torch.as_tensor(v).abs().max()) == 0 for name, v in held.items() if name.startswith("exp"))
    loss_of(model, x).backward()
    optimizer.step()
    assert [w.steps for w in weights] == [1, 1]
    sparse_forward(model, x, FST)
    assert [w.age for w in weights] == [1, 1], "nor did it edit anything"


def test_resume_with_torch_s_calls_for_optimizer_states() -> None:
    def optimizer_of(model: MLP) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    model = MLP()
    optimizer = optimizer_of(model)
    train(model, optimizer, FST, range(5))
    saved = copy.deepcopy((model.state_dict(), state_dict(model), get_optimizer_state_dict(model, optimizer)))
    straight = train(model, optimizer, FST, range(5, 12))
    resumed = MLP()
    sparse_forward(resumed, torch.randn(2, 16), FST)
    again = optimizer_of(resumed)
    resumed.load_state_dict(saved[0])
    load_state_dict(resumed, saved[1])
    set_optimizer_state_dict(resumed, again, saved[2])
    assert [(w.steps, w.age) for w in sparse_weights(resumed).values()] == [(5, 1), (5, 1)]
    assert torch.equal(train(resumed, again, FST, range(5, 12)), straight)


@pytest.mark.parametrize("rate", [0.0, torch.tensor(0.0)])
def test_count_the_first_step_of_a_warm_up_from_zero(rate: Any) -> None:
    model, x = MLP(), torch.randn(8, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, foreach=False)
    loss_of(model, x).backward()
    optimizer.step()
    assert [w.steps for w in sparse_weights(model).values()] == [1, 1]
    assert float(optimizer.state[model.up.weight]["exp_avg"].abs().max()) > 0


def test_decay_nothing_that_pruning_has_made_dense(caplog: pytest.LogCaptureFixture) -> None:
    torch.set_default_device(None)
    model, x = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), torch.randn(8, 16)
    compiled = torch.compile(model, backend="s24", options={"inner": "eager", "decay": 0.1, "gradient": "dense"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> tuple[float, float]:
        """By how much the decay changed the gradients of the two weights."""
        compiled(x).square().mean().backward()
        parameters = [model[0]._parameters.get("weight_orig", model[0].weight), model[2].weight]
        before = [p.grad.clone() for p in parameters]
        with torch.no_grad():
            seen: list[float] = []
            handle = optimizer.register_step_pre_hook(
                lambda *_: seen.extend(float((p.grad - b).abs().max()) for p, b in zip(parameters, before, strict=True))
            )
            optimizer.step()
            handle.remove()
        optimizer.zero_grad()
        return seen[0], seen[1]

    assert min(step()) > 0
    prune.l1_unstructured(model[0], "weight", amount=0.25)
    for _ in range(2):
        pruned, sparse = step()
        assert pruned == 0
        assert sparse > 0
    assert len([r for r in caplog.records if "without a sparse forward" in r.getMessage()]) == 1


def test_decay_nothing_of_a_model_that_runs_uncompiled() -> None:
    model, x = MLP(), torch.randn(8, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, FST, range(1))
    model(x).square().mean().backward()
    expected = model.up.weight.detach() - 0.1 * model.up.weight.grad
    optimizer.step()
    torch.testing.assert_close(model.up.weight.detach(), expected)


def test_say_once_that_an_optimizer_has_made_more_steps_than_its_weights(caplog: pytest.LogCaptureFixture) -> None:
    model = MLP()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, FST, range(3))
    assert not caplog.records
    resumed = MLP()
    again = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(model.state_dict())
    train(resumed, again, FST, range(3, 6))
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith(
        "the optimizer has made 4 steps, and the sparse weights that it holds (up.weight, ...) count 1"
    )
    caplog.clear()
    whole = MLP()
    third = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    third.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    load_state_dict(whole, state_dict(model))
    train(whole, third, FST, range(3, 6))
    assert not caplog.records
