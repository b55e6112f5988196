"""Tables and pictures of the runs: final loss, gap to dense, time, flip rates; loss against steps and wall clock.

    python -m benchmarks.quality.report --folder out/quality/runs

Writes results/quality.json and one PNG per model size and training length. Step times are those that `narrow.py` took
with nothing else on the GPU, or else of windows without a compilation if the run had the GPU to itself; a run's wall
clock is steps times step time, phase by phase, so a resumed run counts like any other.
Runs on different devices, texts or plans are never put into one table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record

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

    @property
    def name(self) -> str:
        """Of the variant, and the seed if it is not the first."""
        plan = self.header["plan"]
        return str(plan["variant"]["name"]) + (f" (seed {plan['seed']})" if plan["seed"] != 1 else "")

    @property
    def group(self) -> tuple[str, ...]:
        """Runs of one group can be compared: same model, text, number of steps and device."""
        plan, header = self.header["plan"], self.header
        return plan["size_name"], str(plan["steps"]), header["corpus"]["sha256"][:12], header["device"]

    @property
    def loss(self) -> float:
        """Validation loss after the last step."""
        return float(self.lines[-1]["validation_loss"])

    def step_ms(self, *, sparse: bool) -> float | None:
        """Time of a step of one phase; None if there was none, none without compilation, or the GPU was shared."""
        lines = [line for line in self.lines if line["sparse"] == sparse]
        if not lines:
            return None
        known = self.times.get(speed_of(self.header, sparse=sparse))
        times = [line["step_ms"] for line in lines if line["warm"]]
        if known is not None or self.header["share"] > 1 or not times:
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
    """The results by group, least gap to dense first."""
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.group].append(result)

    def order(result: Result) -> tuple[float, str]:
        dense = dense_of(result, groups[result.group])
        return result.loss - (dense.loss if dense else 0.0), result.name

    return {group: sorted(members, key=order) for group, members in sorted(groups.items())}


def dense_of(result: Result, members: Sequence[Result]) -> Result | None:
    """The dense run that a result is compared with: of its own seed, for seeds differ more than recipes do."""
    seed = result.header["plan"]["seed"]
    dense = (other for other in members if other.header["plan"]["variant"]["name"] == "dense")
    return next((other for other in dense if other.header["plan"]["seed"] == seed), None)


def markdown(members: Sequence[Result]) -> str:
    """The table of one group."""
    lines = [
        "| variant | F | steps | loss | gap | sparse ms | dense ms | time of dense | ends 2:4 | peak, last flips |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (result.row(dense_of(result, members)) for result in members):
        flips = _both(row["flip_rate_peak"], row["flip_rate_last"])
        cells = [
            row["variant"],
            str(row["hidden"]),
            str(row["steps"]),
            f"{row['loss']:.4f}",
            _show(row["gap"], "+.4f"),
            _show(row["sparse_step_ms"], ".1f"),
            _show(row["dense_step_ms"], ".1f"),
            _show(row["time_of_dense"], ".3f"),
            "yes" if row["ends_sparse"] else "no",
            flips,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(group: tuple[str, ...], members: Sequence[Result], path: Path) -> None:
    """Writes a PNG of the runs of the first seed: validation loss against steps, its gap to dense, against wall clock
    where step times are known, and flip rates."""
    # matplotlib costs half a second, and the tables do without.
    from matplotlib.figure import Figure

    members = [result for result in members if result.header["plan"]["seed"] == 1]
    clocks = {result.name: clock for result in members if (clock := result.clock()) is not None}
    figure = Figure(figsize=(20 if clocks else 16, 7), layout="constrained")
    by_step, gaps, *by_time, flips = figure.subplots(1, 4 if clocks else 3)
    dense = next((_validations(result) for result in members if result.name == "dense"), {})
    for number, result in enumerate(members):
        validations = _validations(result)
        # Ten colours, and more variants than that.
        style = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4], "linewidth": 1.1}
        by_step.plot(
            list(validations), list(validations.values()), marker=".", label=f"{result.name} {result.loss:.4f}", **style
        )
        both = [step for step in validations if step in dense]
        gaps.plot(both, [validations[step] - dense[step] for step in both], marker=".", **style)
        for axes in by_time if result.name in clocks else ():
            seconds = dict(zip((line["step"] for line in result.lines), clocks[result.name], strict=True))
            axes.plot([seconds[step] for step in validations], list(validations.values()), marker=".", **style)
        known = [line for line in result.lines if line.get("step_flip_rate")]
        flips.plot([line["step"] for line in known], [line["step_flip_rate"] for line in known], **style)
    flips.set_yscale("log")
    # The end is where the question lies; the first tenth would flatten it.
    tail = [
        line["validation_loss"] for r in members for line in r.lines[len(r.lines) // 4 :] if "validation_loss" in line
    ]
    for axes, label in ((by_step, "optimizer step"), *((axes, "seconds of training") for axes in by_time)):
        axes.set_ylim(min(tail) * 0.995, max(tail) * 1.005)
        axes.set_xlabel(label)
        axes.set_ylabel("validation loss, nats per token")
    gaps.set_xlabel("optimizer step")
    gaps.set_ylabel("gap to dense, nats per token")
    gaps.set_yscale("symlog", linthresh=0.01)
    flips.set_xlabel("optimizer step")
    flips.set_ylabel("flip rate per step, of masks of the weights")
    figure.legend(loc="outside right upper", frameon=False, fontsize=7)
    figure.suptitle(f"{group[0]}, {group[1]} steps, {group[3]}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _validations(result: Result) -> dict[int, float]:
    """Validation loss by step."""
    return {line["step"]: line["validation_loss"] for line in result.lines if "validation_loss" in line}


def decay_searches(folder: Path) -> list[dict[str, Any]]:
    """What `decay.py` left in the folder: the lambda that was chosen, and mu of each candidate."""
    found = []
    for file in sorted(folder.glob("decay-*.json")):
        told = json.loads(file.read_text())
        _, size, steps = file.stem.split("-")
        mu = {trial["decay"]: trial["mu"] for trial in told["trials"]}
        found.append({"size": size, "steps": int(steps), "chosen": told["chosen"], "advice": told["advice"], "mu": mu})
    return found


def main() -> None:
    """Prints the tables, writes JSON and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/quality/runs"))
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    flags = parser.parse_args()
    document: list[dict[str, Any]] = []
    for group, members in tables(read(flags.folder)).items():
        print(f"\n{group[0]}, {group[1]} steps, text {group[2]}, {group[3]}\n\n{markdown(members)}")
        same = sum((told["size"], str(told["steps"])) == group[:2] for told in document)  # other texts or devices
        picture = flags.results / f"quality_{group[0]}_{group[1]}{f'_{same + 1}' if same else ''}.png"
        draw(group, members, picture)
        document.append(
            {
                "size": group[0],
                "steps": int(group[1]),
                "device": group[3],
                "torch": members[0].header["torch"],
                "date": max(result.header["date"] for result in members),
                "corpus": members[0].header["corpus"],
                "picture": picture.name,
                "rows": [result.row(dense_of(result, members)) for result in members],
                "options": {result.name: result.header["options"] for result in members},
            }
        )
    # Not `record.write`: this machine only reads what others measured.
    told = {"benchmark": "quality", "tables": document, "decay_searches": decay_searches(flags.folder)}
    (flags.results / "quality.json").write_text(json.dumps(told, indent=1) + "\n")


def _length(header: dict[str, Any]) -> int:
    plan = header["plan"]
    return max(1, round(plan["steps"] * plan["variant"]["length"]))


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _both(one: float | None, two: float | None) -> str:
    return "-" if one is None or two is None else f"{one:.1e} / {two:.1e}"


if __name__ == "__main__":
    main()
