"""Trains variants one after the other, within a budget of time, and goes on where the last call stopped.

    python -m benchmarks.quality.run --list
    python -m benchmarks.quality.run --size 30m --steps 2400 --budget-s 540
    python -m benchmarks.quality.run --size 30m --steps 2400 --variants dense,half,narrow=1408 --gpus 2 --share 3
    python -m benchmarks.quality.report --folder out/quality/runs

Finished runs are skipped, an unfinished one goes on from its checkpoint bit for bit. With --gpus N, runs are dealt
out to N processes with one GPU each; with --share M too, to M processes a GPU: small models leave it idle, but their
step times then say nothing, and `narrow.py` has to measure them.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpus import visible_device
from benchmarks.quality import corpus as corpora
from benchmarks.quality.plan import Plan
from benchmarks.quality.sizes import SIZES
from benchmarks.quality.training import Run
from benchmarks.quality.variants import BASIC, VARIANTS, variant

SAVE_EVERY_S = 60.0
"""Seconds between checkpoints: what a kill can cost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains what the flags ask for; 0 if all of it is done, 3 if the budget ended before."""
    flags = _parser().parse_args(arguments)
    if flags.list:
        for row in VARIANTS.values():
            print(f"{row.name:24} {row}")
        return 0
    deadline = time.monotonic() + flags.budget_s
    plans = [
        Plan(flags.size, SIZES[flags.size], variant(name), flags.steps, seed=seed, inner=flags.inner)
        for name in (flags.variants.split(",") if flags.variants else BASIC)
        for seed in ([flags.one_seed] if flags.one_seed else range(1, flags.seeds + 1))
    ]
    waiting = [plan for plan in plans if not is_done(plan, flags.out)]
    print(f"{len(plans)} runs, {len(plans) - len(waiting)} of them done", flush=True)
    if not flags.one_seed and flags.gpus * flags.share > 1:
        return _deal(waiting, flags, deadline)
    corpus = corpora.load(flags.corpus)
    device = flags.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for plan in waiting:
        if not train(plan, corpus, flags.out, device, deadline, flags.share):
            return 3
    return 0


def is_done(plan: Plan, folder: Path) -> bool:
    """Whether the file of a run ends with its last step."""
    file = folder / f"{plan.file_name}.jsonl"
    return file.is_file() and f'"step": {plan.length},' in file.read_text().splitlines()[-1]


def train(plan: Plan, corpus: corpora.Corpus, folder: Path, device: str, deadline: float, share: int = 1) -> bool:
    """Trains one run until it is done or the time is over; returns whether it is done."""
    if time.monotonic() >= deadline:
        return False
    # Runs of one process are to know nothing of each other.
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    run = Run(plan, corpus, folder, device, share)
    run.start()
    saved = time.monotonic()
    for line in run.windows():
        if "validation_loss" in line:
            print(
                f"{plan.file_name} step {line['step']}/{plan.length} validation {line['validation_loss']:.4f} "
                f"{line['step_ms']:.1f} ms a step",
                flush=True,
            )
        now = time.monotonic()
        if run.done:
            break
        if now >= deadline:
            run.save()
            return False
        if now - saved >= SAVE_EVERY_S:
            run.save()
            saved = now
    run.checkpoint.unlink(missing_ok=True)
    return True


def _deal(plans: list[Plan], flags: argparse.Namespace, deadline: float) -> int:
    """Gives each place the next run when it has finished its last; place i is on GPU i mod `gpus`."""
    waiting = list(plans)
    busy: dict[int, subprocess.Popen[bytes]] = {}
    statuses: list[int] = []
    while waiting or busy:
        for place in range(flags.gpus * flags.share):
            process = busy.get(place)
            if process is not None and process.poll() is not None:
                statuses.append(process.returncode)
                del busy[place]
            left = deadline - time.monotonic()
            if place not in busy and waiting and left > 0:
                busy[place] = _start(waiting.pop(0), place % flags.gpus, left, flags)
        if not busy:
            break
        time.sleep(0.5)
    failed = [status for status in statuses if status not in (0, 3)]
    return failed[0] if failed else 3 if waiting or 3 in statuses else 0


def _start(plan: Plan, gpu: int, seconds: float, flags: argparse.Namespace) -> subprocess.Popen[bytes]:
    words = [
        sys.executable, "-m", "benchmarks.quality.run", "--one-seed", str(plan.seed), "--size", flags.size,
        "--steps", str(flags.steps), "--variants", plan.variant.name, "--corpus", str(flags.corpus),
        "--out", str(flags.out), "--inner", flags.inner, "--budget-s", f"{seconds:.0f}", "--share", str(flags.share),
    ]  # fmt: skip
    words += ["--device", flags.device] if flags.device else []
    return subprocess.Popen(words, env={**os.environ, "CUDA_VISIBLE_DEVICES": visible_device(gpu)})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="30m")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--variants", default="", help="names, separated by commas; default: " + ",".join(BASIC))
    parser.add_argument("--seeds", type=int, default=1, help="runs of each variant, with seeds 1, 2, ...")
    parser.add_argument("--one-seed", type=int, default=0, help="run this seed alone")
    parser.add_argument("--corpus", type=Path, default=Path("out/quality/bytes"))
    parser.add_argument("--out", type=Path, default=Path("out/quality/runs"))
    parser.add_argument("--budget-s", type=float, default=float("inf"), help="stop, resumably, after these seconds")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--share", type=int, default=1, help="processes a GPU")
    parser.add_argument("--device", default="", help="default: cuda where there is one")
    parser.add_argument("--inner", default="inductor")
    parser.add_argument("--list", action="store_true", help="list the variants")
    return parser


if __name__ == "__main__":
    sys.exit(main())
