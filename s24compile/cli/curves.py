"""The pictures of `s24 plot` and `s24 tune-decay`."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from s24compile.demo.plot import smooth
from s24compile.errors import ModelError, OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from s24compile.training.decay_search import DecaySearch


_SHARES = {"flip_rate": "flip rate", "nonzero": "hidden: not zero", "over": "groups over two", "dropped": "dropped"}
"""What is drawn below the losses, each in axes of its own -> its label."""
_FIELDS = ("train_loss", "validation_loss", "step_ms", *_SHARES)
"""What a line may say besides its step; all of them numbers."""


@dataclasses.dataclass(frozen=True)
class Curves:
    """One run, as its JSONL file has it."""

    name: str
    lines: tuple[dict[str, Any], ...]

    def of(self, field: str, axis: Literal["step", "seconds"]) -> tuple[list[float], list[float]]:
        """Places and values of one curve; empty where the run has none."""
        places, values = [], []
        seconds, before = 0.0, 0
        for line in self.lines:
            seconds += line.get("step_ms", 0.0) * (line["step"] - before) / 1e3
            before = line["step"]
            if field in line:
                places.append(float(line["step"]) if axis == "step" else seconds)
                values.append(float(line[field]))
        return places, values


def read_curves(path: Path) -> list[Curves]:
    """Reads a JSONL file, or all that lie in a folder. Lines without a step are headers; a cut last line is left out.

    Raises:
        ModelError: no such file, nothing to draw in it, or something else than a number where one is drawn.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise ModelError(
            what=str(path),
            found="no .jsonl file",
            accepted="name a file, or a folder that `s24 train` or `s24 demo` wrote",
        )
    return [_read(file) for file in files]


def draw_curves(
    runs: Sequence[Curves], path: Path, *, axis: Literal["step", "seconds"] = "step", window: int = 15
) -> Path:
    """Draws training loss (lines, mean of `window` lines) and validation loss (dots), and below what any run has of
    flip rates and of the shares that `activation_stats` gives.

    Returns:
        The file that it wrote: a PNG, with ".png" after a path without a suffix, or what the suffix says.

    Raises:
        OptionError: `out`, which is this path, cannot be written or has a suffix of no picture.
    """
    known = [field for field in _SHARES if any(run.of(field, axis)[0] for run in runs)]
    figure = _figure((9, 4.5 + 2 * len(known)))
    rows = 2 + len(known)
    losses = figure.add_subplot(rows, 1, (1, 2))
    shares = {field: figure.add_subplot(rows, 1, 3 + i, sharex=losses) for i, field in enumerate(known)}
    for number, run in enumerate(runs):
        colour = f"C{number}"
        places, values = run.of("train_loss", axis)
        losses.plot(places, smooth(values, window), color=colour, linewidth=1.3, label=run.name)
        losses.plot(*run.of("validation_loss", axis), "o", color=colour, markersize=4)
        for field, axes in shares.items():
            axes.plot(*run.of(field, axis), color=colour, linewidth=1.3)
    losses.set_ylabel("loss, nats")
    losses.legend(frameon=False, title="line: train, dots: validation", title_fontsize=8, fontsize=8)
    for field, axes in shares.items():
        axes.set_ylabel(_SHARES[field])
    every = [losses, *shares.values()]
    every[-1].set_xlabel("optimizer step" if axis == "step" else "seconds of training")
    return _finish(figure, every, path)


def draw_search(search: DecaySearch, path: Path) -> None:
    """Writes a PNG: the flip rates of all runs of a decay search, and mu against lambda with its feasible range."""
    figure = _figure((11, 4.2))
    rates, ratios = figure.subplots(1, 2)
    for trial in (search.dense, *search.trials):
        name, style = ("dense", "k--") if trial.decay is None else (f"{trial.decay:g}", "-")
        rates.plot(range(2, len(trial.flip_rates) + 2), trial.flip_rates, style, linewidth=1.2, label=name)
    rates.set_xlabel("step of the search")
    rates.set_ylabel("flip rate per step")
    rates.legend(frameon=False, fontsize=8, title="decay", title_fontsize=8)
    ratios.axhspan(*search.feasible, color="C2", alpha=0.15, linewidth=0)
    ratios.axhline(1.0, color="0.5", linewidth=0.8)
    ratios.plot([trial.decay for trial in search.trials], [trial.mu for trial in search.trials], "o-", linewidth=1.2)
    # Linear around 0, which is a candidate like any other.
    positive = [trial.decay for trial in search.trials if trial.decay]
    if positive:
        ratios.set_xscale("symlog", linthresh=min(positive))
    ratios.set_xlabel("decay")
    ratios.set_ylabel("mu, flip rate over that of the dense run")
    ratios.set_title(search.advice, fontsize=9, loc="left")
    _finish(figure, [rates, ratios], path)


def _read(file: Path) -> Curves:
    lines = []
    try:
        whole = file.read_text()
    except UnicodeDecodeError:
        raise ModelError(
            what=str(file), found="it is no text", accepted="it must be JSONL as `s24 train` writes it"
        ) from None
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # the line that a killed process was writing
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            for field in _FIELDS:
                if not isinstance(line.get(field, 0.0), (int, float)):
                    raise ModelError(
                        what=f"{file}:{number}",
                        found=f"{field} is {line[field]!r}",
                        accepted="it must be a number, or be left out",
                    )
            lines.append(line)
    if not lines:
        raise ModelError(
            what=str(file), found="no line with a step", accepted="it must be JSONL as `s24 train` writes it"
        )
    return Curves(file.parent.name if file.stem == "metrics" else file.stem, tuple(lines))


def _figure(size: tuple[float, float]) -> Figure:
    if importlib.util.find_spec("matplotlib") is None:
        raise ModelError(
            what="the picture", found="matplotlib is not installed", accepted="pip install 's24compile[plots]'"
        )
    # matplotlib costs half a second and is an extra: only who draws needs it.
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _finish(figure: Figure, all_axes: Sequence[Axes], path: Path) -> Path:
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    if not path.suffix and not path.is_dir():
        path = path.with_suffix(".png")
    suffix = path.suffix[1:].lower()
    known = figure.canvas.get_supported_filetypes()
    if suffix and suffix not in known:
        accepted = f"its suffix must be one of {', '.join(f'.{name}' for name in sorted(known))}"
        raise OptionError(name="out", value=str(path), accepted=accepted)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # With a format given, matplotlib writes to this path or fails; it would put a picture beside a folder.
        figure.savefig(path, dpi=150, format=suffix or "png")
    except OSError as error:
        raise OptionError(
            name="out", value=str(path), accepted=f"it must be a file that can be written ({error.strerror})"
        ) from None
    return path
