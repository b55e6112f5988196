"""Tables of README and documentation: made of results, the reported ones marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.quality.names import LINES, label, shown
from benchmarks.quality.variants import VARIANTS, variant
from benchmarks.tables import losses, speeds
from benchmarks.tables.markdown import refilled, table
from benchmarks.tables.readme import CHOICES


def row(variant: str, gap: float | None, time: float | None = None) -> dict[str, Any]:
    return {"variant": variant, "gap": gap, "loss": 1.0, "time_of_dense": time}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Of two seeds, and a run of our own beside one that was only reported."""
    mine = [row("dense", 0.0, 1.0), row("fst", 0.02, 0.9), row("fst (seed 2)", 0.04, 0.9), row("half", None, 0.8)]
    told = [{"size": "30m", "steps": 6, "rows": mine}, {"size": "30m", "steps": 16, "rows": [row("fst", 0.0071)]}]
    reported = [
        {"size": "30m", "steps": 16, "rows": [{"variant": "dense", "loss": 0.3}, {"variant": "fst", "loss": 0.307}]}
    ]
    (tmp_path / "quality.json").write_text(json.dumps({"tables": told}))
    (tmp_path / "quality_reported.json").write_text(json.dumps({"tables": reported}))
    return tmp_path


def test_mark_what_was_only_reported_beside_runs_of_our_own(results: Path) -> None:
    made = losses.gaps({"a": "fst", "b": "half"}, [("30m", 6), ("30m", 16)], results)
    assert "| a | +0.0200, +0.0400 | +0.0071, +0.0070 † |" in made
    assert "| b |  |  |" in made
    assert made.endswith(losses.FOOTNOTE)
    assert "†" not in losses.gaps({"a": "fst"}, [("30m", 6)], results)


def test_take_the_mean_of_seeds_and_the_time_of_one_clock(results: Path) -> None:
    made = losses.choices({"dense": "dense", "two": "fst", "any": "half fst"}, ("30m", 6), [("30m", 6)], results)
    assert "| dense | 1.00 | 0 |" in made
    assert "| two | 0.90 | +0.0300 (2 seeds) |" in made
    assert "| any | 0.80 | +0.0300 (2 seeds) |" in made
    assert "| two | 0.90 | +0.0071, +0.0070 † |" in losses.choices({"two": "fst"}, ("30m", 6), [("30m", 16)], results)


def test_make_parts_of_a_text_anew_and_leave_the_rest() -> None:
    text = "a\n<!-- made: one -->\nold\n<!-- end -->\nb\n<!-- made: two -->\n<!-- end -->\n"
    made = refilled(text, {"one": lambda: "1\n1", "two": lambda: "2"})
    assert made == "a\n<!-- made: one -->\n1\n1\n<!-- end -->\nb\n<!-- made: two -->\n2\n<!-- end -->\n"
    assert refilled(made, {"one": lambda: "1\n1", "two": lambda: "2"}) == made


def test_align_text_left_and_numbers_right() -> None:
    assert table(["name", "ms"], [["a", "1"]]) == "| name | ms |\n| :--- | ---: |\n| a | 1 |"


def test_draw_no_more_lines_than_can_be_told_apart() -> None:
    names = shown({*VARIANTS, "narrow=2688", "narrow=1600"})
    assert len(names) + 1 == LINES == 8
    assert names[:2] == ["fst-l1-no-mvue-down-head1/6", "fst-l1-no-mvue-head1/6"]
    assert [label(name) for name in names[:2]] == ["fst-down", "fst-exact"]
    assert label("narrow=1600") == "dense, F = 1600"


def test_offer_choices_that_can_be_trained() -> None:
    for variants in CHOICES.values():
        for name in variants.split():
            assert variant(name).name == name


def test_say_of_each_table_of_speeds_on_what_it_was_measured() -> None:
    assert speeds.measured_on("gemm").startswith("*NVIDIA H100")
    assert speeds.measured_on("ffn", "gemm").count("NVIDIA H100") == 1
    assert "GELU 768-3072" in speeds.layers()
    assert len(speeds.layers().splitlines()) == 2 + len(speeds.LAYERS)
    for made in (
        speeds.gradients(),
        speeds.recipes(),
        speeds.steps(),
        speeds.products(),
        speeds.memory_bound(),
        speeds.host(),
    ):
        widths = {line.count("|") for line in made.splitlines()}
        assert len(widths) == 1
