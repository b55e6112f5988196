"""`s24 plot`: loss and flip-rate curves of training runs."""

from __future__ import annotations

import json as writer
from pathlib import Path
from typing import Annotated

import typer

from s24compile.errors import OptionError


def command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="JSONL files, or folders that hold some.")],
    out: Annotated[Path, typer.Option(help="Picture to write; no suffix: .png.")] = Path("out/plot.png"),
    axis: Annotated[str, typer.Option(help="step, or seconds of training.")] = "step",
    smooth: Annotated[int, typer.Option(min=1, help="Training losses are means of this many lines.")] = 15,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Draw the loss and flip-rate curves that `s24 train` and `s24 demo` wrote, one colour a run.

    Any JSONL file will do whose lines have `step`, and `train_loss`, `validation_loss`, `flip_rate` or `step_ms`.

    Example: `s24 plot out/fst out/sste --out out/both.png`
    """
    from s24compile.cli.curves import draw_curves, read_curves

    if axis not in ("step", "seconds"):
        raise OptionError(name="axis", value=axis, accepted="it must be 'step' or 'seconds'")
    curves = [curve for path in runs for curve in read_curves(path)]
    picture = draw_curves(curves, out, axis="step" if axis == "step" else "seconds", window=smooth)
    names = [curve.name for curve in curves]
    typer.echo(writer.dumps({"curves": names, "picture": str(picture)}) if json else f"{', '.join(names)}: {picture}")
