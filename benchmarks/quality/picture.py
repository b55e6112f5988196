"""The picture of the runs of one model size and training length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.results import Result


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
    figure.suptitle(f"{group[0]}, {group[1]} steps, clock of {members[0].clock_device}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _validations(result: Result) -> dict[int, float]:
    """Validation loss by step."""
    return {line["step"]: line["validation_loss"] for line in result.lines if "validation_loss" in line}
