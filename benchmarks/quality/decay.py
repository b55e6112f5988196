"""Runs `s24compile.tune_decay` on a benchmark model, to be held against whole runs with each candidate.

    python -m benchmarks.quality.decay --size 30m --steps 2400 --after 100

Prints the table and keeps the outcome beside the runs (decay-SIZE-STEPS.json); `report.py` shows it next to the losses
of the `fst-end-decay*` variants of that size and length.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor

import s24compile
from benchmarks.quality import corpus as corpora
from benchmarks.quality.plan import Plan
from benchmarks.quality.sizes import SIZES
from benchmarks.quality.training import Run
from benchmarks.quality.variants import variant
from s24compile.training.decay_search import DecaySearch
from s24compile.training.tune_decay import CANDIDATES


def search(
    plan: Plan, corpus: corpora.Corpus, device: str, *, after: int, steps: int, candidates: tuple[float, ...]
) -> DecaySearch:
    """Trains `after` steps of the plan, then searches with short runs of `steps` steps."""
    run = Run(plan, corpus, Path(), device)
    for _ in range(after):
        run.train_step()

    def train_step(i: int) -> Tensor:
        run.step = after + i
        return run.train_step()

    return s24compile.tune_decay(run.model, run.optimizer, train_step, candidates=candidates, steps=steps)


def main() -> None:
    """Searches, prints, keeps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="30m")
    parser.add_argument("--steps", type=int, default=2400, help="of the run, for its learning rates")
    parser.add_argument("--like", default="fst-end", help="variant whose decay is searched")
    parser.add_argument("--after", type=int, default=100, help="steps trained before")
    parser.add_argument("--short", type=int, default=60, help="steps of each short run")
    parser.add_argument("--candidates", type=float, nargs="*", default=[0.0, *CANDIDATES])
    parser.add_argument("--corpus", type=Path, default=Path("out/quality/bytes"))
    parser.add_argument("--out", type=Path, default=Path("out/quality/runs"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    plan = Plan(flags.size, SIZES[flags.size], variant(flags.like), flags.steps)
    candidates = tuple(flags.candidates)
    found = search(
        plan, corpora.load(flags.corpus), flags.device, after=flags.after, steps=flags.short, candidates=candidates
    )
    print(found)
    flags.out.mkdir(parents=True, exist_ok=True)
    told = dataclasses.asdict(found) | {"chosen": found.chosen, "advice": found.advice, "after": flags.after}
    (flags.out / f"decay-{flags.size}-{flags.steps}.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
