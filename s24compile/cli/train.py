"""`s24 train`: trains the example GPT, with a nanoGPT-style config file and flags."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s24compile.cli.settings import takes_settings
from s24compile.demo.settings import TrainConfig
from s24compile.errors import ModelError

if TYPE_CHECKING:
    from s24compile.demo.training import Run


@takes_settings
def command(
    config: TrainConfig,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from OUT_DIR/checkpoint.pt, bit for bit.")] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="List all settings and their values, then stop.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")] = False,
) -> None:
    """Train the example GPT on bytes of Python sources, or of the .py files below --dataset=FOLDER.

    Settings come from the file, as in nanoGPT (lines such as `batch_size = 32`), then from options such as
    `--n_layer=6 --max_iters=1000`. Fields of `s24compile.Config` are settings too: `--recipe=sste --decay=2e-4`.
    `--backend=inductor` trains dense. Checkpoints go to OUT_DIR/checkpoint.pt every `--checkpoint_interval` steps,
    curves to OUT_DIR/metrics.jsonl, which `s24 plot OUT_DIR` draws.

    Example: `s24 train --max_iters=200 --out_dir=out/run`

    Example: `s24 train my_config.py --resume`
    """
    if settings:
        for field, value in dataclasses.asdict(config).items():
            typer.echo(f"{field} = {value!r}")
        return
    _train(config, resume=resume, json=json)


def _check_sparse(run: Run) -> None:
    """Refuses to train dense by mistake. Layers that only the cost model refuses are no mistake: its log says so."""
    import s24compile
    from s24compile.compiler.explanation import explain_with
    from s24compile.config import Config

    if run.config.backend != "s24" or s24compile.sparse_weights(run.model) or s24compile.activation_stats(run.model):
        return
    forced = Config.from_options({**dict(run.config.options), "min_speedup": 0.0})
    report = explain_with(run.model, run.batch("train", 0), {}, forced)
    if not report.rewritten:
        # All blocks are alike, and so are their reasons.
        reason = report.refused[0].reason if report.refused else "there is no feed-forward layer in it"
        raise ModelError(
            what="the model of s24 train",
            found=f"no layer of it can train 2:4: {reason}",
            accepted="change n_embd, n_hidden or the options, or train it dense on purpose with --backend=inductor",
        )


def _train(config: TrainConfig, *, resume: bool, json: bool) -> None:
    import json as writer

    from s24compile.cli.load import folder_for_results
    from s24compile.cli.progress import training_progress
    from s24compile.cli.terminal import console
    from s24compile.demo.text import read_sources
    from s24compile.demo.training import Run

    out = Path(config.out_dir)
    checkpoint = out / "checkpoint.pt"
    run = Run(config, read_sources(Path(config.dataset) if config.dataset else None))
    if resume:
        if not checkpoint.is_file():
            raise ModelError(what=str(checkpoint), found="no such file", accepted="start without --resume")
        run.load(checkpoint)
    folder_for_results("out_dir", out)
    terminal = console(json=json)
    first = run.step + 1
    with training_progress(terminal) as progress:
        task = progress.add_task(config.backend, total=config.max_iters, completed=run.step, loss="compiling")
        for step in run.steps():
            if step == first:
                _check_sparse(run)
            progress.update(task, completed=step, loss=f"{run.history.train_loss[-1]:.3f}")
            if step % config.checkpoint_interval == 0 or step == config.max_iters:
                run.save(checkpoint)
                run.history.write_jsonl(out / "metrics.jsonl")
    losses = run.history.validation_loss
    result = {
        "step": run.step,
        "train_loss": run.history.train_loss[-1] if run.history.train_loss else None,
        "validation_loss": losses[-1][1] if losses else None,
        "checkpoint": str(checkpoint),
    }
    if json:
        typer.echo(writer.dumps(result))
    else:
        terminal.print(", ".join(f"{name} {value}" for name, value in result.items()))
