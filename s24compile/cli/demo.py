"""`s24 demo`: a plain GPT trained dense and 2:4-sparse on the sources of Python's standard library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from s24compile.demo.comparison import Outcome
    from s24compile.demo.training import Run


def command(
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of each run.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the weights and batches, the same for both runs.")] = 1337,
    out: Annotated[Path, typer.Option(help="Folder for demo.png and demo.json.")] = Path("out/demo"),
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    threads: Annotated[
        int,
        typer.Option(min=1, help="CPU threads. One is enough here, and makes the losses the same on every machine."),
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the outcomes as JSON instead of a table.")] = False,
) -> None:
    """Train a small GPT twice, dense and with backend="s24", from one seed on the same batches.

    The text is the source code of Python's standard library, byte by byte. Prints a table and writes both loss curves
    to OUT/demo.png. Fails if a feed-forward layer stayed dense.
    """
    import dataclasses
    import json as writer

    import torch

    from s24compile.cli.load import folder_for_results
    from s24compile.cli.progress import training_progress
    from s24compile.cli.terminal import console
    from s24compile.demo.comparison import compare, write_json
    from s24compile.demo.plot import draw
    from s24compile.demo.settings import TrainConfig
    from s24compile.demo.text import read_sources

    torch.set_num_threads(threads)
    config = TrainConfig(max_iters=steps, seed=seed, device=device, warmup_iters=min(20, steps), out_dir=str(out))
    text = read_sources()
    folder_for_results("out", out)
    terminal = console(json=json)
    terminal.print(
        f"{len(text.train) / 1e6:.1f} MB of Python sources, {steps} steps of "
        f"{config.batch_size * config.block_size} bytes, device {config.resolve().device}"
    )
    with training_progress(terminal) as progress:
        tasks = {name: progress.add_task(label, total=steps, loss="compiling") for name, label in LABELS.items()}

        def advance(name: str, run: Run) -> None:
            progress.update(tasks[name], completed=run.step, loss=f"{run.history.train_loss[-1]:.3f}")

        runs, outcomes = compare(config, text, advance)
    picture = out / "demo.png"
    title = f"GPT, {config.n_layer} layers of width {config.n_embd}, on bytes of Python sources, one seed"
    draw(runs["inductor"].history, runs["s24"].history, picture, title)
    write_json(config, runs, outcomes, out / "demo.json")
    if json:
        typer.echo(writer.dumps({name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}, indent=1))
        return
    terminal.print(_table(outcomes))
    if runs["s24"].config.device == "cpu":
        terminal.print(
            "The CPU runs reference arithmetic, which is slower than dense: look at the losses, not the times."
        )
    terminal.print(f"loss curves: {picture}")


LABELS = {"inductor": "dense", "s24": "2:4"}


def _table(outcomes: dict[str, Outcome]) -> Table:
    from rich.table import Table

    def row(name: str, show: str, field: str) -> list[str]:
        values = [getattr(outcomes[backend], field) for backend in LABELS]
        return [name, *("-" if value is None else format(value, show) for value in values)]

    table = Table(title="dense and 2:4 from the same seed")
    table.add_column("")
    table.add_column("dense", justify="right")
    table.add_column("2:4 (s24)", justify="right")
    table.add_row(*row("loss at the start, nats per byte", ".3f", "first_loss"))
    table.add_row(*row("train loss, last 20 steps", ".3f", "train_loss"))
    table.add_row(*row("validation loss", ".3f", "validation_loss"))
    counts = [f"{outcomes[b].sparse_linears} of {outcomes[b].ffn_linears}" for b in LABELS]
    table.add_row("feed-forward linears that are 2:4", *counts)
    table.add_row(*row("mask density", ".3f", "density"))
    table.add_row(*row("mask entries flipped by the last search", ".3f", "flip_rate"))
    table.add_row(*row("step time, median, ms", ".1f", "step_ms"))
    table.add_row(*row("first step (compilation), s", ".1f", "first_step_s"))
    return table
