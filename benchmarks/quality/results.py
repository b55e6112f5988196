"""Runs as their files tell them: final loss, gap to dense, time, flip rates."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TIMES = "times.json"
"""Step times that `narrow.py` leaves in the folder of the runs."""
Speed = tuple[str, int, str, str]
"""What a step time depends on: model size, hidden width, options of the sparse phase ("" for dense), device."""


def speed_of(header: Mapping[str, Any], *, sparse: bool) -> Speed:
    """The key of a run's step time in one of its phases. Schedules and decay leave it as it is."""
    options = header["options"] if sparse else None
    # dense_start is in the headers of older runs alone.
    kept = {k: v for k, v in (options or {}).items() if k not in ("decay", "dense_after", "dense_start")}
    text = json.dumps(kept, sort_keys=True) if kept else ""
    return header["plan"]["size_name"], header["hidden"], text, header["device"]


@dataclasses.dataclass(frozen=True)
class Result:
    """What the file of one finished run says."""

    header: dict[str, Any]
    lines: list[dict[str, Any]]
    times: Mapping[Speed, float] = dataclasses.field(default_factory=dict)
    """Step times in ms that were measured apart."""
    clock_device: str = ""
    """The device whose step times are wanted; "" for its own."""

    @property
    def name(self) -> str:
        """Of the variant, and the seed if it is not the first."""
        plan = self.header["plan"]
        return str(plan["variant"]["name"]) + (f" (seed {plan['seed']})" if plan["seed"] != 1 else "")

    @property
    def group(self) -> tuple[str, ...]:
        """Runs of one group can be compared: same model, text and number of steps, all on GPUs or all on CPUs. GPUs of
        two kinds differ in the order of their sums, as two runs on one do."""
        plan, header = self.header["plan"], self.header
        kind = "GPU" if header["cuda"] else "CPU"
        return plan["size_name"], str(plan["steps"]), header["corpus"]["sha256"][:12], kind

    @property
    def loss(self) -> float:
        """Validation loss after the last step."""
        return float(self.lines[-1]["validation_loss"])

    def step_ms(self, *, sparse: bool) -> float | None:
        """Time of a step of one phase; None if there was none, none without compilation, or the GPU was shared or
        another one."""
        lines = [line for line in self.lines if line["sparse"] == sparse]
        if not lines:
            return None
        device = self.clock_device or self.header["device"]
        known = self.times.get(speed_of({**self.header, "device": device}, sparse=sparse))
        times = [line["step_ms"] for line in lines if line["warm"]]
        if known is not None or self.header["share"] > 1 or device != self.header["device"] or not times:
            return known
        return statistics.fmean(times)

    def clock(self) -> list[float] | None:
        """Seconds of training at each line; None where a phase's step time is not known."""
        means = {sparse: self.step_ms(sparse=sparse) for sparse in (False, True)}
        seconds, before, passed = [], 0, 0.0
        for line in self.lines:
            mean = means[line["sparse"]]
            if mean is None:
                return None
            passed += (line["step"] - before) * mean / 1e3
            before = line["step"]
            seconds.append(passed)
        return seconds

    def row(self, dense: Result | None) -> dict[str, Any]:
        """One row of the table."""
        flips = [line["flip_rate"] for line in self.lines if "flip_rate" in line and line["sparse"]]
        clock, of_dense = self.clock(), None if dense is None else dense.clock()
        return {
            "variant": self.name,
            "hidden": self.header["hidden"],
            "parameters": self.header["parameters"],
            "steps": self.lines[-1]["step"],
            "loss": self.loss,
            "gap": None if dense is None else self.loss - dense.loss,
            "sparse_step_ms": self.step_ms(sparse=True),
            "dense_step_ms": self.step_ms(sparse=False),
            "wall_clock_s": None if clock is None else clock[-1],
            "time_of_dense": None if clock is None or of_dense is None else clock[-1] / of_dense[-1],
            "ends_sparse": self.lines[-1]["sparse"],
            "flip_rate_peak": max(flips, default=None),
            "flip_rate_last": flips[-1] if flips else None,
        }


def read(folder: Path) -> list[Result]:
    """The finished runs of a folder."""
    results, times = [], read_times(folder / TIMES)
    for file in sorted(folder.glob("*.jsonl")):
        header, *lines = map(json.loads, file.read_text().splitlines())
        if lines and "validation_loss" in lines[-1] and lines[-1]["step"] >= _length(header):
            results.append(Result(header, lines, times))
    return results


def read_times(file: Path) -> dict[Speed, float]:
    """What `narrow.keep` wrote; nothing where there is no such file."""
    measured = json.loads(file.read_text()) if file.is_file() else []
    return {tuple(entry["speed"]): entry["step_ms"] for entry in measured}


def tables(results: Iterable[Result]) -> dict[tuple[str, ...], list[Result]]:
    """The results by group, least gap to dense first. A group has one clock, of the device of its first dense run."""
    apart: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        apart[result.group].append(result)
    groups = {group: _on_one_clock(members) for group, members in apart.items()}

    def order(result: Result) -> tuple[float, str]:
        dense = dense_of(result, groups[result.group])
        return result.loss - (dense.loss if dense else 0.0), result.name

    return {group: sorted(members, key=order) for group, members in sorted(groups.items())}


def _on_one_clock(members: Sequence[Result]) -> list[Result]:
    dense = (result for result in members if result.name == "dense")
    device = next(dense, members[0]).header["device"]
    return [dataclasses.replace(result, clock_device=device) for result in members]


def dense_of(result: Result, members: Sequence[Result]) -> Result | None:
    """The dense run that a result is compared with: of its own seed, for seeds differ more than recipes do."""
    seed = result.header["plan"]["seed"]
    dense = (other for other in members if other.header["plan"]["variant"]["name"] == "dense")
    return next((other for other in dense if other.header["plan"]["seed"] == seed), None)


def _length(header: dict[str, Any]) -> int:
    plan = header["plan"]
    return max(1, round(plan["steps"] * plan["variant"]["length"]))
