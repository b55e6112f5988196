"""What a forward does about weights that were written where no optimizer stepped: the right numbers, the right mask."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import s24compile
from s24compile.config import Config
from s24compile.weights.model_state import bake_, load_state_dict, refresh, sparse_weights, state_dict
from s24compile.weights.packing import freshen
from s24compile.weights.unheld import UNHELD_STEPS
from tests.freshening import MLP, dense_values, operand_of, sparse_forward, train

FST = Config(mask_interval=3, gradient="dense")
LONG = Config(mask_interval=40, gradient="dense")


def masked_forward(model: MLP, x: Tensor) -> Tensor:
    """The documented forward, of the parameters and masks as they are now."""
    weights = sparse_weights(model)
    hidden = torch.relu(x @ (model.up.weight * weights["up.weight"].mask).t() + model.up.bias)
    return hidden @ (model.down.weight * weights["down.weight"].mask).t() + model.down.bias


def has_best_masks(model: MLP) -> bool:
    return all(
        torch.equal(weight.mask, torch.ops.s24.transposable_mask(model.get_parameter(name).detach()))
        for name, weight in sparse_weights(model).items()
    )


def set_aside(model: MLP) -> list[Tensor]:
    return [weight.mask.clone() for weight in sparse_weights(model).values()]


def are_masks(model: MLP, masks: list[Tensor]) -> bool:
    return all(torch.equal(w.mask, mask) for w, mask in zip(sparse_weights(model).values(), masks, strict=True))


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "whole": lambda w: w.data.mul_(0.5).add_(0.1),
    "row": lambda w: w.data[3].fill_(2.0),
    "column": lambda w: w.data[:, 7].neg_(),
    "numpy": lambda w: w.detach().numpy().__imul__(-1.0),
}


@pytest.mark.parametrize("how", WRITES)
def test_compute_at_once_with_what_was_written_where_nothing_shows_it(how: str) -> None:
    parameter = nn.Parameter(torch.randn(32, 16))
    operands = [operand_of(parameter, config=FST, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    for found in operands:
        freshen(found, True)
    for _ in range(2):
        WRITES[how](parameter)
        for found in operands:
            packed = freshen(found, True)
            masked = parameter.detach() * s24compile.weights.registry.WEIGHTS.get(parameter).mask
            assert torch.equal(dense_values(packed, 32, 16), masked.to(found.request.dtype))


@pytest.mark.parametrize("frozen", [False, True])
def test_compute_a_compiled_forward_with_what_was_written_meanwhile(frozen: bool) -> None:
    model = MLP().requires_grad_(not frozen)
    compiled, x = torch.compile(model, backend="s24", options={"inner": "eager"}), torch.randn(8, 16)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), masked_forward(model, x))
        model.down.weight.data.add_(0.5)
        model.up.weight.data.mul_(-2.0)
    with torch.no_grad():
        compiled(x)
        model.up.weight.data[5] = 1.0
        torch.testing.assert_close(compiled(x), masked_forward(model, x))


def test_train_with_the_own_weights_after_a_validation_with_averaged_ones() -> None:
    model = MLP()
    average = copy.deepcopy(model)
    compiled, x = torch.compile(model, backend="s24", options={"inner": "eager"}), torch.randn(8, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)

    def swap() -> None:  # as Lightning's EMAWeightAveraging does
        for mine, theirs in zip(model.parameters(), average.parameters(), strict=True):
            kept = theirs.data.clone()
            theirs.data.copy_(mine.data)
            mine.data.copy_(kept)

    for _ in range(3):
        torch.testing.assert_close(compiled(x), masked_forward(model, x))
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for mine, theirs in zip(model.parameters(), average.parameters(), strict=True):
            theirs.data.lerp_(mine.data, 0.5)
        swap()
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), masked_forward(model, x))
        swap()


def test_follow_a_frozen_momentum_teacher() -> None:
    student = MLP()
    teacher = copy.deepcopy(student).requires_grad_(False)
    options: dict[str, Any] = {"backend": "s24", "options": {"inner": "eager", "mask_interval": 4}}
    s, t = torch.compile(student, **options), torch.compile(teacher, **options)
    optimizer, x = torch.optim.SGD(student.parameters(), lr=0.1), torch.randn(8, 16)
    for i in range(10):
        y = t(x)
        torch.testing.assert_close(y, masked_forward(teacher, x), msg=f"iteration {i}")
        (s(x) - y - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.data.mul_(0.5).add_(theirs.detach().data, alpha=0.5)
    ages = [weight.scheduled_age for weight in sparse_weights(teacher).values()]
    assert max(ages) < 4, "its masks are searched every four steps of the student"


def load(model: MLP, other: MLP) -> None:
    model.load_state_dict(other.state_dict())


def assign(model: MLP, other: MLP) -> None:
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


def write_data(model: MLP, other: MLP) -> None:
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.data.copy_(theirs.data)


def replace_data(model: MLP, other: MLP) -> None:
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        mine.data = theirs.data.clone()


RELOADS = {f.__name__: f for f in (load, assign, write_data, replace_data)}


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("how", RELOADS)
def test_search_the_masks_of_weights_that_were_loaded_in_evaluation(how: str, trained: bool) -> None:
    model, other, x = MLP(), MLP(), torch.randn(8, 16)
    if trained:
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), LONG, range(2))
    with torch.no_grad():
        sparse_forward(model, x, LONG)
        RELOADS[how](model, other)
        for _ in range(2):
            out = sparse_forward(model, x, LONG)
    assert has_best_masks(model)
    torch.testing.assert_close(out, masked_forward(model, x))
    torch.testing.assert_close(model.up.weight, other.up.weight)


def test_search_the_masks_of_weights_that_were_loaded_right_after_the_last_step() -> None:
    model, x = MLP(), torch.randn(8, 16)
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), LONG, range(2))
    load(model, MLP())
    with torch.no_grad():
        sparse_forward(model, x, LONG)
    assert has_best_masks(model)


@pytest.mark.parametrize("forward_between", [False, True])
@pytest.mark.parametrize("how", ["load", "write_data"])
def test_bake_a_finished_model_without_a_loss_after_it_was_loaded(how: str, forward_between: bool) -> None:
    finished, model, x = MLP(), MLP(), torch.randn(8, 16)
    sparse_forward(finished, x, LONG)
    bake_(finished)
    with torch.no_grad():
        sparse_forward(model, x, LONG)
        RELOADS[how](model, finished)
        if forward_between:
            torch.testing.assert_close(sparse_forward(model, x, LONG), finished(x))
    bake_(model)
    torch.testing.assert_close(model(x), finished(x))
    assert float((model.up.weight == 0).float().mean()) == 0.5


@pytest.mark.parametrize("how", RELOADS)
def test_change_nothing_about_the_training_in_an_evaluation_of_other_weights(how: str) -> None:
    def run(evaluate: bool) -> tuple[Tensor, Any]:
        torch.manual_seed(0)
        model, other = MLP(), MLP()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        losses = []
        for step in range(7):
            losses.append(train(model, optimizer, Config(mask_interval=4, gradient="dense"), range(step, step + 1)))
            if evaluate:
                kept = copy.deepcopy(model)
                for weights in (other, kept):
                    if how == "assign":  # which leaves the optimizer with what was there before
                        write_data(model, weights)
                    else:
                        RELOADS[how](model, weights)
                    with torch.no_grad():
                        sparse_forward(model, torch.randn(8, 16), Config(mask_interval=4, gradient="dense"))
        return torch.cat(losses), state_dict(model)

    (alone, state), (evaluated, after) = run(False), run(True)
    assert torch.equal(evaluated, alone)
    for name, entry in state.items():
        assert after[name]["age"] == entry["age"]
        assert torch.equal(after[name]["patterns"], entry["patterns"])
        assert torch.equal(after[name]["previous"], entry["previous"])


def test_save_the_training_s_masks_while_an_evaluation_uses_others() -> None:
    model, x = MLP(), torch.randn(8, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, LONG, range(3))
    saved, masks, kept = state_dict(model), set_aside(model), copy.deepcopy(model)
    load(model, MLP())
    with torch.no_grad():
        sparse_forward(model, x, LONG)
    assert has_best_masks(model)
    assert [w.age for w in sparse_weights(model).values()] == [0, 0]
    during = state_dict(model)
    assert [e["age"] for e in during.values()] == [e["age"] for e in saved.values()] == [3, 3]
    assert all(torch.equal(during[name]["patterns"], saved[name]["patterns"]) for name in saved)
    load(model, kept)
    sparse_forward(model, x, LONG)
    assert are_masks(model, masks)
    assert [w.age for w in sparse_weights(model).values()] == [3, 3]


MOVES: dict[str, Callable[[MLP], Any]] = {
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "another storage": lambda model: replace_data(model, copy.deepcopy(model)),
    "the same again": lambda model: load(model, copy.deepcopy(model)),
    "assigned": lambda model: assign(model, copy.deepcopy(model)),
}


@pytest.mark.parametrize("how", MOVES)
def test_keep_masks_of_weights_that_moved_without_other_numbers(how: str) -> None:
    model, x = MLP(), torch.randn(8, 16)
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), LONG, range(3))
    with torch.no_grad():
        sparse_forward(model, x, LONG)
        masks = set_aside(model)
        assert not has_best_masks(model)
        MOVES[how](model)
        sparse_forward(model, x.to(model.up.weight.dtype), LONG)
    assert are_masks(model, masks)
    assert [w.age for w in sparse_weights(model).values()] == [3, 3]


def test_keep_masks_of_a_model_that_moves_right_after_its_last_step() -> None:
    model = MLP()
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), LONG, range(3))
    masks = set_aside(model)
    model.double()
    with torch.no_grad():
        sparse_forward(model, torch.randn(8, 16).double(), LONG)
    assert are_masks(model, masks)


def test_end_the_interval_with_the_first_step_where_weights_were_loaded_before_it() -> None:
    model, x = MLP(), torch.randn(8, 16)
    sparse_forward(model, x, LONG)
    masks = set_aside(model)
    load(model, MLP())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train(model, optimizer, LONG, range(1))
    assert are_masks(model, masks), "an edit in training is packed with the old mask"
    sparse_forward(model, x, LONG)
    assert has_best_masks(model)
    train(model, optimizer, LONG, range(1, 4))
    assert [w.age for w in sparse_weights(model).values()] == [3, 3], "and then all is as before"


def test_keep_masks_to_the_end_of_their_interval_where_the_loop_edits_weights_after_each_step() -> None:
    model, optimizer_of = MLP(), torch.optim.SGD
    optimizer = optimizer_of(model.parameters(), lr=0.3)
    for step in range(4):
        train(model, optimizer, LONG, range(step, step + 1))
        with torch.no_grad():
            for parameter in (model.up.weight, model.down.weight):
                parameter.copy_(nn.functional.normalize(parameter, dim=1))
            if step > 0:
                masks = set_aside(model)
                sparse_forward(model, torch.randn(8, 16), LONG)
                assert are_masks(model, masks)


@pytest.mark.parametrize("write", ["in place", "data"])
def test_warn_once_where_weights_train_without_an_optimizer(write: str, caplog: pytest.LogCaptureFixture) -> None:
    model, x = MLP(), torch.randn(8, 16)
    for _ in range(UNHELD_STEPS + 5):
        sparse_forward(model, x, LONG).square().mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                (p if write == "in place" else p.data).sub_(0.1 * p.grad)
                p.grad = None
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    texts = [text for text in said if "no torch.optim.Optimizer has stepped" in text]
    assert len(texts) == 2, "one a weight, of those whose forwards are packed one by one"
    assert texts[0].startswith("up.weight, which trains sparse, was written before 40 forwards")


def test_say_nothing_of_optimizers_to_who_loads_and_evaluates(caplog: pytest.LogCaptureFixture) -> None:
    model, x = MLP(), torch.randn(8, 16)
    for _ in range(UNHELD_STEPS + 5):
        load(model, MLP())
        with torch.no_grad():
            sparse_forward(model, x, LONG)
    assert not caplog.records


def test_keep_the_masks_of_a_refreshed_model_in_evaluation_too() -> None:
    model, x = MLP(), torch.randn(8, 16)
    with torch.no_grad():
        sparse_forward(model, x, LONG)
        masks = set_aside(model)
        write_data(model, MLP())
        refresh(model)
        torch.testing.assert_close(sparse_forward(model, x, LONG), masked_forward(model, x))
    assert are_masks(model, masks), "whoever calls it decides about the search"


def test_take_loaded_masks_for_those_of_the_weights_that_are_loaded_beside_them() -> None:
    donor, x = MLP(), torch.randn(8, 16)
    train(donor, torch.optim.SGD(donor.parameters(), lr=0.5), LONG, range(3))
    for first in ("model", "masks"):
        model = MLP()
        with torch.no_grad():
            sparse_forward(model, x, LONG)
            for what in (first, "masks" if first == "model" else "model"):
                if what == "model":
                    load(model, donor)
                else:
                    load_state_dict(model, state_dict(donor))
            sparse_forward(model, x, LONG)
        assert are_masks(model, set_aside(donor))
