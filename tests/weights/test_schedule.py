"""When a weight is dense: the later of schedule and set_phase wins; what a turn is; the recipe table is consistent."""

from __future__ import annotations

import gc

import pytest
import torch

from s24compile.config import Config
from s24compile.recipe import RECIPES
from s24compile.training.hooks import watch_optimizers
from s24compile.weights.packing import freshen
from s24compile.weights.registry import WEIGHTS
from s24compile.weights.schedule import StepClock, phase_at
from tests.freshening import operand_of


@pytest.mark.parametrize(
    ("steps", "sparse_from", "dense_from", "asked", "asked_at", "phase"),
    [
        (0, 3, 10, None, 0, "dense"),
        (2, 3, 10, None, 0, "dense"),
        (3, 3, 10, None, 0, "sparse"),
        (4, 3, 10, None, 0, "sparse"),  # resumed past the start
        (10, 3, 10, None, 0, "dense"),
        (1, 3, 10, "sparse", 1, "sparse"),  # the user ends the start early
        (3, 3, 10, "dense", 1, "dense"),  # or puts its end off
        (10, 3, 10, "sparse", 1, "dense"),
        (0, 0, None, None, 0, "sparse"),
        (9, 0, 10, None, 0, "sparse"),
        (10, 0, 10, None, 0, "dense"),
        (11, 0, 10, None, 0, "dense"),  # resumed past the switch
        (5, 0, 10, "dense", 3, "dense"),
        (5, 0, 10, "sparse", 3, "sparse"),
        (10, 0, 10, "sparse", 3, "dense"),  # the schedule came later
        (15, 0, 10, "sparse", 12, "sparse"),  # the user came later
        (0, 0, 0, "sparse", 0, "dense"),
        (9, 0, None, "dense", 2, "dense"),
    ],
)
def test_let_the_later_event_win(steps, sparse_from, dense_from, asked, asked_at, phase):
    assert phase_at(steps, sparse_from, dense_from, asked, asked_at) == phase


def test_describe_every_recipe_of_the_options():
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    for recipe in RECIPES.values():
        assert (recipe.dx == "sparse") == (recipe.select == "transposable"), "only such masks are 2:4 both ways"


class Idle(torch.optim.Optimizer):
    """Steps, and moves nothing."""

    def __init__(self) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(2))], {"lr": 0.1})

    def step(self, closure: object = None) -> None:
        """Nothing."""


def turns(order: str) -> int:
    """Turns of a clock that sees these optimizers step, each a letter."""
    clock, optimizers = StepClock(), {letter: Idle() for letter in order}
    for letter in order:
        clock.step(optimizers[letter], whole=True)
    return clock.turn


@pytest.mark.parametrize(
    ("order", "expected"),
    [("aaaa", 4), ("abab", 2), ("abcabcabc", 3), ("aaab", 3), ("aaabaaab", 6), ("abba", 2), ("", 0)],
)
def test_count_a_turn_for_all_optimizers_that_step_in_one_iteration(order: str, expected: int) -> None:
    assert turns(order) == expected


def test_count_no_turn_for_a_step_inside_another() -> None:
    clock, inner, outer = StepClock(), Idle(), Idle()
    for _ in range(3):
        clock.step(inner, whole=False)
        clock.step(outer, whole=True)
    assert (clock.turn, clock.tick) == (3, 6)


def test_go_on_with_turns_when_an_optimizer_has_gone() -> None:
    clock = StepClock()
    for _ in range(3):
        optimizer = Idle()
        clock.step(optimizer, whole=True)
        del optimizer
        gc.collect()
    assert clock.turn == 3


@pytest.mark.parametrize("optimizers", [1, 4])
def test_search_an_orphan_at_its_interval_however_many_optimizers_step(optimizers: int) -> None:
    config = Config(mask_interval=3, gradient="dense")
    orphan, others = torch.nn.Parameter(torch.randn(16, 16)), [Idle() for _ in range(optimizers)]
    ages = []
    watch_optimizers()
    for _ in range(7):
        freshen(operand_of(orphan, config=config), True)
        ages.append(WEIGHTS.get(orphan).scheduled_age)  # type: ignore[union-attr]
        for optimizer in others:
            optimizer.step()
        with torch.no_grad():
            orphan.add_(torch.randn(16, 16))
    assert ages == [0, 1, 2, 0, 1, 2, 0]
