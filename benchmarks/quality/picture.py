"""The picture of the runs of one model size and training length: at most eight lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality.names import SIZES, label, shown
from benchmarks.quality.results import Result


def draw(group: tuple[str, ...], members: Sequence[Result], path: Path) -> bool:
    """Writes a PNG of the runs of the first seed: their loss over that of the dense run against steps, and at the end
    against their time where step times are known. Returns whether there was anything to draw: of the variants those
    that `names.shown` takes, and a dense run to compare them with."""
    # matplotlib costs half a second, and the tables do without.
    from matplotlib.figure import Figure

    first = {result.name: result for result in members if result.header["plan"]["seed"] == 1}
    names = shown(set(first))
    if "dense" not in first or not names:
        return False
    dense = _validations(first["dense"])
    last = max(dense)
    timed = {name: row["time_of_dense"] for name in names if (row := first[name].row(first["dense"]))["time_of_dense"]}
    # A model so small that its steps wait for the host is no measure of time.
    by_time = group[0] != "30m" and bool(timed)
    figure = Figure(figsize=(12 if by_time else 9, 4.2), layout="constrained")
    gaps, *more = figure.subplots(1, 2, width_ratios=(3, 2)) if by_time else (figure.subplots(),)
    gaps.axhline(0, color="black", lw=1, label=f"dense: {dense[last]:.4f} at the end")
    ends = {}
    for number, name in enumerate(names):
        found = {step: loss - dense[step] for step, loss in _validations(first[name]).items() if step in dense}
        ends[name] = found[last]
        # The first tenth is a fall from a large loss, in which differences mean nothing.
        late = [step for step in found if step >= last / 10]
        line = "--" if label(name).startswith("dense") else "-"
        text = f"{label(name)}: {found[last]:+.4f}"
        gaps.plot(late, [found[step] for step in late], line, color=f"C{number}", lw=1.3, label=text)
    worst = max(abs(gap) for gap in ends.values())
    gaps.set_ylim(-0.7 * worst, 2 * worst)
    gaps.set_xlabel("optimizer step")
    gaps.set_ylabel("loss over that of dense, nats per token")
    figure.legend(*gaps.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    for axes in more:
        axes.axhline(0, color="black", lw=1)
        axes.plot([1], [0], "ks")
        for number, name in enumerate(names):
            if name in timed:
                axes.plot([timed[name]], [ends[name]], "o", color=f"C{number}")
        axes.set_xlabel("time of the run, in times of the dense run")
        axes.set_ylabel("the same at the last step")
    figure.suptitle(f"{SIZES.get(group[0], group[0])}, {group[1]} steps", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return True


def _validations(result: Result) -> dict[int, float]:
    """Validation loss by step."""
    return {line["step"]: line["validation_loss"] for line in result.lines if "validation_loss" in line}
