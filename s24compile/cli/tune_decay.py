"""`s24 tune-decay`: the search for masked decay's lambda by flip rates, on the example GPT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s24compile.cli.settings import takes_settings
from s24compile.demo.settings import TrainConfig
from s24compile.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from s24compile.training.decay_search import DecaySearch


@takes_settings
def command(
    config: TrainConfig,
    candidates: Annotated[
        str, typer.Option(help="Values of decay to try, separated by commas; default: 1e-6 to 2e-3 in seven steps.")
    ] = "",
    steps: Annotated[int, typer.Option(help="Steps of each short run; the last half is judged.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for tune_decay.json and tune_decay.png.")] = Path("out/tune_decay"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Search the masked decay (lambda) that keeps the flip rate at 0.60 to 0.95 of the dense run's.

    Trains the example GPT of `s24 train` for a few steps: dense, and once per candidate, from one start on the same
    batches. mu is the flip rate over the dense run's; 1 or more harms. The outcome holds for this model and learning
    rate; for a model of yours call `s24compile.tune_decay(model, optimizer, train_step)` in your own script.

    Example: `s24 tune-decay --n_layer=2 --candidates=0,2e-5,2e-4`
    """
    import dataclasses
    import importlib.util
    import json as writer

    import s24compile
    from s24compile.cli.curves import draw_search
    from s24compile.cli.load import folder_for_results
    from s24compile.cli.progress import training_progress
    from s24compile.cli.terminal import console
    from s24compile.demo.text import read_sources
    from s24compile.demo.training import Run
    from s24compile.training.tune_decay import CANDIDATES

    if config.backend != "s24":
        raise OptionError(name="backend", value=config.backend, accepted="it must be 's24', which has the decay")
    config = config.forced()
    decays = _numbers(candidates) if candidates else list(CANDIDATES)
    folder_for_results("out", out)
    run = Run(config, read_sources(Path(config.dataset) if config.dataset else None))
    terminal = console(json=json)
    with training_progress(terminal) as progress:
        task = progress.add_task("tune-decay", total=steps * (1 + len(set(decays))), loss="compiling")

        def train_step(index: int) -> float:
            loss = run.train_step(index)
            progress.update(task, advance=1, loss=f"{loss:.3f}")
            return loss

        search = s24compile.tune_decay(
            run.model, run.optimizer, train_step, candidates=decays, steps=steps, also=(run.scaler,)
        )
    told = dataclasses.asdict(search) | {"chosen": search.chosen, "advice": search.advice}
    (out / "tune_decay.json").write_text(writer.dumps(told, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib") is not None:
        draw_search(search, out / "tune_decay.png")
    if json:
        typer.echo(writer.dumps(told, indent=1))
    else:
        terminal.print(_table(search))
        terminal.print(f"{search.advice}; curves: {out}")


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise OptionError(name="candidates", value=text, accepted="write numbers separated by commas") from None


def _table(search: DecaySearch) -> Table:
    from rich.table import Table

    table = Table("decay", "flip rate", "mu", "loss", "", title="masked decay")
    for row in search.rows():
        table.add_row(*row)
    return table
