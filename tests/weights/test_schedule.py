"""When a weight is dense: the later of schedule and set_phase wins; the recipe table is consistent."""

from __future__ import annotations

import pytest

from s24compile.recipe import RECIPES
from s24compile.weights.schedule import phase_at


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
