"""The demo: the same model, seed and batches, trained dense and 2:4-sparse, side by side."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import s24compile
from s24compile.demo.settings import TrainConfig
from s24compile.demo.text import ByteText
from s24compile.demo.training import Run
from s24compile.errors import ModelError

BACKENDS = ("inductor", "s24")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one of the two runs came to."""

    backend: str
    first_loss: float
    """Training loss of the first step, nats per byte."""
    train_loss: float
    """Mean training loss of the last 20 steps."""
    validation_loss: float
    sparse_linears: int
    """Linears that hold a 2:4 mask."""
    ffn_linears: int
    """Linears of the model's feed-forward layers."""
    density: float | None
    """Share of the sparse layers' weights that is kept; 0.5 for 2:4."""
    flip_rate: float | None
    """Share of mask entries that the last search changed, mean over the weights."""
    first_step_s: float
    """Wall clock of the first step: compilation."""
    step_ms: float
    """Median of the later steps."""


def compare(
    config: TrainConfig, text: ByteText, advance: Callable[[str, Run], None] = lambda name, run: None
) -> tuple[dict[str, Run], dict[str, Outcome]]:
    """Trains once per backend and tells both outcomes, keyed by backend.

    `advance(backend, run)` is called after every step.

    Raises:
        ModelError: the s24 run had no sparse layer, or a layer whose mask is not 2:4: then there is nothing to compare.
    """
    runs: dict[str, Run] = {}
    outcomes: dict[str, Outcome] = {}
    for backend in BACKENDS:
        # Both runs start as in a fresh process: same generator state, nothing compiled.
        torch.compiler.reset()
        # On a GPU the demo's layers are too small to pay, and are to be seen sparse all the same.
        own = dataclasses.replace(config, backend=backend, options=config.options if backend == "s24" else ())
        runs[backend] = run = Run(own.forced() if backend == "s24" else own, text)
        for step in run.steps():
            if backend == "s24" and step in (1, config.max_iters):
                _check_sparse(run)
            advance(backend, run)
        outcomes[backend] = _outcome(run)
    return runs, outcomes


def write_json(config: TrainConfig, runs: dict[str, Run], outcomes: dict[str, Outcome], path: Path) -> None:
    """Writes settings, outcomes and curves beside the picture; the curves also as `<backend>.jsonl`, for `s24 plot`."""
    document = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if runs["s24"].config.device.startswith("cuda") else "cpu",
        "config": dataclasses.asdict(config),
        "outcomes": {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()},
        "history": {name: dataclasses.asdict(run.history) for name, run in runs.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    for name, run in runs.items():
        run.history.write_jsonl(path.with_name(f"{name}.jsonl"))


def ffn_weights(run: Run) -> list[str]:
    """Names of the weights of the GPT's feed-forward linears, which the model's own code calls `mlp`."""
    return [name for name, p in run.model.named_parameters() if ".mlp." in name and p.dim() == 2]


def _outcome(run: Run) -> Outcome:
    history = run.history
    states = s24compile.sparse_weights(run.model) if run.config.backend == "s24" else {}
    flips = [state.flip_rate for state in states.values() if state.flip_rate is not None]
    masks: list[Any] = [state.mask for state in states.values()]
    kept, total = sum(int(m.sum()) for m in masks), sum(m.numel() for m in masks)
    return Outcome(
        backend=run.config.backend,
        first_loss=history.train_loss[0],
        train_loss=statistics.fmean(history.train_loss[-20:]),
        validation_loss=history.validation_loss[-1][1],
        sparse_linears=len(states),
        ffn_linears=len(ffn_weights(run)),
        density=kept / total if total else None,
        flip_rate=statistics.fmean(flips) if flips else None,
        first_step_s=history.step_ms[0] / 1e3,
        step_ms=statistics.median(history.step_ms[1:] or history.step_ms),
    )


def _check_sparse(run: Run) -> None:
    states = s24compile.sparse_weights(run.model)
    dense = sorted(set(ffn_weights(run)) - set(states))
    if dense:
        raise ModelError(
            what="the demo's model",
            found=f"{len(dense)} feed-forward weights stayed dense, {dense[0]} among them",
            accepted="all of them should be 2:4; `s24 explain s24compile.demo.model:example` says why not",
        )
    for name, state in states.items():
        groups = state.mask.reshape(-1, 4).sum(dim=1)
        if not bool((groups == 2).all()):
            raise ModelError(
                what=f"mask of {name}", found="a group of four does not keep two", accepted="this is a bug"
            )
