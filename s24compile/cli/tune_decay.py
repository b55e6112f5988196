"""`s24 tune-decay`: the search for masked decay's lambda by flip rates, on the example GPT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s24compile.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from s24compile.demo.decay_search import Candidate


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG.py] [--NAME=VALUE]...", help="Settings, as for `s24 train`."),
    ] = None,
    candidates: Annotated[
        str, typer.Option(help="Values of decay to try, separated by commas.")
    ] = "0,6e-6,2e-5,6e-5,2e-4,6e-4,2e-3",
    searches: Annotated[int, typer.Option(min=1, help="Mask searches per run after the first.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Search the masked decay (lambda) that keeps the flip rate at 0.60 to 0.95 of the dense run's.

    Trains the example GPT of `s24 train` for a few mask intervals: dense, and once per candidate, from one seed on the
    same batches. mu is the mean flip rate over the dense run's; 1 or more harms. The smallest candidate in the range is
    suggested. It holds for this model and learning rate: the best value differs from model to model.

    Example: `s24 tune-decay --n_layer=2 --candidates=0,2e-5,2e-4`
    """
    import dataclasses
    import json as writer
    import math

    from rich.console import Console

    from s24compile.cli.progress import training_progress
    from s24compile.cli.train import settings_of_words
    from s24compile.demo.decay_search import search, suggestion
    from s24compile.demo.text import read_sources
    from s24compile.demo.training import Run

    config = settings_of_words(words or [])
    try:
        decays = [float(word) for word in candidates.split(",")]
    except ValueError:
        decays = [math.nan]
    if not all(math.isfinite(decay) and decay >= 0 for decay in decays):
        raise OptionError(name="candidates", value=candidates, accepted="finite numbers >= 0, separated by commas")
    steps = searches * int(dict(config.options).get("mask_interval", 40))
    if steps > config.max_iters:
        raise OptionError(
            name="max_iters", value=config.max_iters, accepted=f"{searches} searches need at least {steps} steps"
        )
    console = Console(stderr=json)
    with training_progress(console) as progress:
        task = progress.add_task("tune-decay", total=steps * (1 + len(decays)), loss="compiling")

        def advance(run: Run) -> None:
            progress.update(task, advance=1, loss=f"{run.history.train_loss[-1]:.3f}")

        dense, tried = search(
            config, read_sources(Path(config.dataset) if config.dataset else None), decays, searches, advance
        )
    best = suggestion(tried)
    if json:
        told = {
            "dense": dense,
            "candidates": [dataclasses.asdict(c) for c in tried],
            "decay": best.decay if best else None,
        }
        typer.echo(writer.dumps(told, indent=1))
        return
    console.print(_table(dense, tried))
    if best is None:
        console.print("no candidate is in the range: try larger values where mu is above it, smaller ones where below")
    else:
        console.print(f"suggested: decay={best.decay:g}")


def _table(dense: Sequence[float], tried: Sequence[Candidate]) -> Table:
    from rich.table import Table

    table = Table("decay", "flip rates, search by search", "mu", "0.60 to 0.95?", title="masked decay")
    table.add_row("dense run", "  ".join(f"{rate:.4f}" for rate in dense), "1", "")
    for candidate in tried:
        rates = "  ".join(f"{rate:.4f}" for rate in candidate.flip_rates)
        table.add_row(f"{candidate.decay:g}", rates, f"{candidate.mu:.2f}", "yes" if candidate.healthy else "no")
    return table
