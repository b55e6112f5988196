"""When a weight is dense: the later of schedule and set_phase wins; the recipe table is consistent."""

from __future__ import annotations

import pytest

from s24compile.training.recipe import RECIPES
from s24compile.training.schedule import phase_at


@pytest.mark.parametrize(
    ("steps", "dense_from", "asked", "asked_at", "phase"),
    [
        (0, None, None, 0, "sparse"),
        (9, 10, None, 0, "sparse"),
        (10, 10, None, 0, "dense"),
        (11, 10, None, 0, "dense"),  # resumed past the switch
        (5, 10, "dense", 3, "dense"),
        (5, 10, "sparse", 3, "sparse"),
        (10, 10, "sparse", 3, "dense"),  # the schedule came later
        (15, 10, "sparse", 12, "sparse"),  # the user came later
        (0, 0, "sparse", 0, "dense"),
        (9, None, "dense", 2, "dense"),
    ],
)
def test_let_the_later_event_win(steps, dense_from, asked, asked_at, phase):
    assert phase_at(steps, dense_from, asked, asked_at) == phase


def test_describe_every_recipe_of_the_options():
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    for recipe in RECIPES.values():
        assert (recipe.dx == "sparse") == (recipe.select == "transposable"), "only such masks are 2:4 both ways"
