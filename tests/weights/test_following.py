"""State that follows a weight: to a Parameter that is put in its place, and to a copy that averages it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from s24compile.config import Config
from s24compile.weights.model_state import load_state_dict, set_phase, sparse_weights, state_dict
from s24compile.weights.registry import PLACES
from tests.freshening import MLP, operand_of, sparse_forward, train

FST = Config(mask_interval=3, gradient="dense")
OPTIONS: dict[str, Any] = {"backend": "s24", "options": {"inner": "eager"}}


@pytest.fixture
def overwriting() -> Iterator[None]:
    """Conversions make new Parameters, as those of torch/xla do."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def compiled_steps(model: nn.Module, steps: int) -> None:
    compiled = torch.compile(model, **OPTIONS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        compiled(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def steps_of(model: nn.Module) -> list[int]:
    return [weight.steps for weight in sparse_weights(model).values()]


@pytest.mark.parametrize("order", [("to_empty", "model", "s24"), ("s24", "to_empty", "model")])
def test_keep_loaded_state_of_a_model_that_is_made_on_meta(order: tuple[str, ...]) -> None:
    donor = MLP()
    compiled_steps(donor, 4)
    saved = state_dict(donor)
    with torch.device("meta"):
        model = MLP()
    for what in order:
        if what == "to_empty":
            model.to_empty(device="cpu")
        elif what == "model":
            model.load_state_dict(donor.state_dict())
        else:
            load_state_dict(model, saved)
    assert state_dict(model)["up.weight"]["steps"] == 4
    torch.compile(model, **OPTIONS)(torch.randn(8, 16))
    assert steps_of(model) == [4, 4]
    for name, weight in sparse_weights(model).items():
        assert torch.equal(weight.mask, sparse_weights(donor)[name].mask)


def test_keep_a_phase_that_was_asked_for_on_meta() -> None:
    with torch.device("meta"):
        model = MLP()
    set_phase(model, "dense")
    model.to_empty(device="cpu").load_state_dict(MLP().state_dict())
    torch.compile(model, **OPTIONS)(torch.randn(8, 16))
    assert [weight.phase for weight in sparse_weights(model).values()] == ["dense", "dense"]


@pytest.mark.usefixtures("overwriting")
@pytest.mark.parametrize("asked", [False, True])
def test_keep_state_over_a_conversion_that_makes_new_parameters(asked: bool) -> None:
    model = MLP()
    compiled_steps(model, 4)
    before = state_dict(model) if asked else None
    old = model.up.weight
    model.double()
    assert model.up.weight is not old
    del old
    torch.compile(model, **OPTIONS)(torch.randn(8, 16).double())
    assert steps_of(model) == [4, 4], "the model was found among the variables of who called its graph"
    if before is not None:
        assert torch.equal(state_dict(model)["up.weight"]["patterns"], before["up.weight"]["patterns"])


@pytest.mark.usefixtures("overwriting")
def test_know_of_the_new_parameters_before_the_next_forward() -> None:
    model = MLP()
    compiled_steps(model, 3)
    model.double()
    assert steps_of(model) == [3, 3]
    set_phase(model, "dense")
    model.float()
    torch.compile(model, **OPTIONS)(torch.randn(8, 16))
    assert [(w.steps, w.phase) for w in sparse_weights(model).values()] == [(3, "dense"), (3, "dense")]


@pytest.mark.usefixtures("overwriting")
def test_take_the_state_that_a_weight_has_reached_not_the_one_that_was_loaded() -> None:
    donor, model = MLP(), MLP()
    compiled_steps(donor, 2)
    load_state_dict(model, state_dict(donor))
    compiled_steps(model, 3)
    model.double()
    torch.compile(model, **OPTIONS)(torch.randn(8, 16).double())
    assert steps_of(model) == [5, 5]


def test_start_afresh_in_another_model_of_the_same_names() -> None:
    first = MLP()
    compiled_steps(first, 3)
    second = MLP()
    compiled_steps(second, 1)
    assert steps_of(second) == [1, 1]
    first.up.weight = nn.Parameter(torch.randn(16, 16))
    assert list(sparse_weights(first)) == ["down.weight"], "another shape is another weight"


def test_hold_no_module_alive() -> None:
    size = len(PLACES._residents)
    model = MLP()
    compiled_steps(model, 1)
    sparse_weights(model)
    assert len(PLACES._residents) == size + 2
    torch._dynamo.reset()
    del model
    assert len(PLACES._residents) == size


def masked(linear: nn.Linear, mask: Tensor) -> Tensor:
    return linear.weight.detach() * mask


@pytest.mark.parametrize("frozen", [False, True])
def test_let_an_average_of_a_model_follow_its_schedule(frozen: bool) -> None:
    config = Config(mask_interval=3, dense_until=2, dense_after=5, gradient="dense")
    model = MLP()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)).requires_grad_(not frozen)
    optimizer, phases = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(7):
        train(model, optimizer, config, range(step, step + 1))
        average.update_parameters(model)
        if step >= 3:
            with torch.set_grad_enabled(frozen):
                found = operand_of(average.module.up.weight, config=config, names=("module.up.weight",))
            phases.append((found.weights[0].phase, sparse_weights(model)["up.weight"].phase))
    assert phases == [("sparse", "sparse")] + 3 * [("dense", "dense")]


def test_let_a_model_that_trains_begin_its_own_schedule_beside_another() -> None:
    config = Config(mask_interval=3, dense_after=3, gradient="dense")
    first = MLP()
    train(first, torch.optim.SGD(first.parameters(), lr=0.1), config, range(4))
    second = copy.deepcopy(first)
    with torch.no_grad():
        sparse_forward(second, torch.randn(8, 16), config)  # an evaluation before the training
    assert sparse_weights(second)["up.weight"].phase == "dense", "so far it is a copy of the first"
    train(second, torch.optim.SGD(second.parameters(), lr=0.1), config, range(1))
    assert [(w.steps, w.phase) for w in sparse_weights(second).values()] == [(1, "sparse"), (1, "sparse")]
