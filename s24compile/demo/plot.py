"""The picture of the demo: both loss curves, and what lies between them."""

from __future__ import annotations

from pathlib import Path

from s24compile.demo.training import History

DENSE, SPARSE = "#7a7a7a", "#c2410c"


def smooth(values: list[float], window: int = 15) -> list[float]:
    """Mean of the last `window` values at each place."""
    sums = [sum(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
    return [total / min(i + 1, window) for i, total in enumerate(sums)]


def draw(dense: History, sparse: History, path: Path, title: str) -> None:
    """Writes a PNG with the training curves (lines), validation losses (dots) and the gap between the two runs."""
    # matplotlib costs half a second and is an extra: only who draws needs it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    losses, gap = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for history, colour, name in ((dense, DENSE, "dense (Inductor)"), (sparse, SPARSE, "2:4 (s24)")):
        steps = range(1, len(history.train_loss) + 1)
        losses.plot(steps, smooth(history.train_loss), color=colour, linewidth=1.6, label=name)
        losses.plot(*zip(*history.validation_loss, strict=True), "o", color=colour, markersize=4.5)
    difference = [s - d for d, s in zip(smooth(dense.train_loss), smooth(sparse.train_loss), strict=True)]
    gap.axhline(0, color=DENSE, linewidth=0.8)
    gap.plot(range(1, len(difference) + 1), difference, color=SPARSE, linewidth=1.2)
    losses.set_ylabel("loss, nats per byte")
    losses.set_title(title, fontsize=10, loc="left")
    losses.legend(frameon=False, title="line: train (mean of 15), dots: validation", title_fontsize=8)
    gap.set_ylabel("2:4 minus dense")
    gap.set_xlabel("optimizer step")
    for axes in (losses, gap):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
