"""What 2:4 training costs in loss, as measured: tables of README and of the pages about it.

A figure is the loss of a run over that of the dense run of the same seed, in nats per token; several are several seeds.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.names import SIZES
from benchmarks.record import RESULTS
from benchmarks.tables.markdown import table

Experiment = tuple[str, int]
"""Model and steps: ("30m", 6000)."""
REPORTED = "†"
FOOTNOTE = f"{REPORTED} Reported: a run of the same harness elsewhere, whose log is not in this repository."


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run."""

    gap: float | None
    """None where no dense run of its seed is known."""
    loss: float
    time: float | None
    """Of the whole run, in times of the dense run."""
    reported: bool = False

    def __str__(self) -> str:
        gap = "" if self.gap is None else f"{self.gap:+.4f}".replace("-0.0000", "+0.0000") if self.gap else "0"
        return f"{gap} {REPORTED}" if self.reported else gap


def outcomes(folder: Path = RESULTS) -> dict[Experiment, dict[str, list[Outcome]]]:
    """Everything that was run: experiment -> variant -> a run for each seed, and those that were only reported."""
    found: dict[Experiment, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for told in tables(folder):
        for row in sorted(told["rows"], key=lambda row: row["variant"]):
            name = row["variant"].partition(" (seed ")[0]
            run = Outcome(row["gap"], row["loss"], row["time_of_dense"])
            found[told["size"], told["steps"]][name].append(run)
    for told in _read(folder / "quality_reported.json")["tables"]:
        losses = {row["variant"]: row["loss"] for row in told["rows"]}
        for name, loss in losses.items():
            run = Outcome(loss - losses["dense"], loss, None, reported=True)
            found[told["size"], told["steps"]][name].append(run)
    return found


def tables(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The tables of quality.json, in the order of `names.SIZES`."""
    order = {size: place for place, size in enumerate(SIZES)}
    found: list[dict[str, Any]] = _read(folder / "quality.json")["tables"]
    return sorted(found, key=lambda told: (order.get(told["size"], len(order)), told["size"], told["steps"]))


def gaps(rows: Mapping[str, str], columns: Sequence[Experiment], folder: Path = RESULTS) -> str:
    """A table of all gaps.

    Args:
        rows: what a reader calls a variant -> the variant.
        columns: the experiments; what was not run is left empty.
    """
    known = outcomes(folder)
    body = [
        [name, *(", ".join(map(str, known[column].get(variant, []))) for column in columns)]
        for name, variant in rows.items()
    ]
    return _with_footnote(table(["", *map(title, columns)], body))


def choices(rows: Mapping[str, str], clock: Experiment, columns: Sequence[Experiment], folder: Path = RESULTS) -> str:
    """Time and gap of what a user may choose: of several seeds the mean gap, and how many there were.

    Args:
        rows: what a reader calls a variant -> the variants that it stands for, separated by spaces.
        clock: the experiment whose run times, in times of the dense run, make the first column.
        columns: as for `gaps`.
    """
    known, body = outcomes(folder), []
    for name, variants in rows.items():
        runs = {column: [run for v in variants.split() for run in known[column].get(v, [])] for column in columns}
        timed = [run.time for v in variants.split() for run in known[clock].get(v, []) if run.time is not None]
        body.append([name, f"{timed[0]:.2f}" if timed else "", *map(_summary, runs.values())])
    return _with_footnote(table(["", f"time, {SIZES.get(clock[0], clock[0])}", *map(title, columns)], body))


def _summary(runs: Sequence[Outcome]) -> str:
    """One run of ours is itself, several are their mean; what was only reported stands for itself."""
    own = [run.gap for run in runs if not run.reported and run.gap is not None]
    shown = [str(run) for run in runs if run.reported]
    if own:
        mean = str(Outcome(statistics.fmean(own), 0.0, None))
        shown.insert(0, mean if len(own) == 1 or not any(own) else f"{mean} ({len(own)} seeds)")
    return ", ".join(shown)


def _with_footnote(made: str) -> str:
    return f"{made}\n\n{FOOTNOTE}" if REPORTED in made else made


def every_run(told: Mapping[str, Any]) -> str:
    """All rows of one table of quality.json."""
    rows = [
        [
            f"`{row['variant']}`",
            str(row["hidden"]),
            f"{row['loss']:.4f}",
            "" if row["gap"] is None else f"{row['gap']:+.4f}",
            "" if row["time_of_dense"] is None else f"{row['time_of_dense']:.3f}",
            "yes" if row["ends_sparse"] else "",
        ]
        for row in told["rows"]
    ]
    return table(["variant", "F", "loss", "gap", "time", "ends 2:4"], rows)


def title(experiment: Experiment) -> str:
    """ "26M, 6000 steps"."""
    return f"{SIZES.get(experiment[0], experiment[0])}, {experiment[1]} steps"


def experiment(text: str) -> Experiment:
    """Of "30m/6000"."""
    size, _, steps = text.partition("/")
    return size, int(steps)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
