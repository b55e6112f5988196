"""Sweeps schedules, raster orders and swizzles over the shapes, and writes the table that `tuned.py` reads."""

from __future__ import annotations

import datetime as dt
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.gemm_parts.operands import random_sparse
from benchmarks.gemm_parts.ours import activations, sparse_mm
from benchmarks.gemm_parts.shapes import Shape
from benchmarks.gemm_parts.timing import burst_us, compare_us
from s24compile.kernels.gemm.cutlass import build
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, Schedule, Signature
from s24compile.kernels.gemm.cutlass.tuned import Choice

SCHEDULES = tuple(
    Schedule.parse(name)
    for name in (
        "128x256_2x1_coop", "128x256_2x1_coop_deep", "128x256_2x1_coop_sk", "128x256_2x1_coop_sk_deep",
        "128x192_2x1_coop_deep", "128x192_2x1_coop_sk_deep", "128x192_2x1_ping", "128x256_1x1_coop_deep",
    )
)  # fmt: skip
LARGE = 2e12
"""Operations above which only the largest tile is tried: there are many waves of it, and smaller ones read more."""
RASTERS: tuple[Literal["m", "n"], ...] = ("m", "n")


def signature(shape: Shape, out: str) -> Signature:
    """The kernel that training runs for `shape`."""
    wide: Any = out
    if shape.gradient:
        return Signature("bf16", "k", "n", "row", wide)
    return Signature("bf16", "k", "k", "col", wide)


def tune(shape: Shape, schedules: Sequence[Schedule], out: torch.dtype = torch.bfloat16) -> dict[str, float]:
    """{choice name: microseconds} of the finalists, fastest first.

    Two rounds: every schedule with every raster order and two swizzles in short bursts, then the ten fastest (and the
    other swizzles of the fastest) interleaved with medians.
    """
    s = random_sparse(shape.m, shape.k, torch.bfloat16, "cuda")
    bs = activations(shape, torch.bfloat16, 2)
    name = "fp32" if out == torch.float32 else "bf16"
    if shape.flops > LARGE:
        schedules = [how for how in schedules if how.tile == (128, 256) and not how.stream_k]
    built = [how for how in schedules if build.object_path(Kernel(signature(shape, name), how)) is not None]

    def runs(choices: Sequence[Choice]) -> dict[str, Any]:
        return {choice.name: sparse_mm(s, bs, shape, out, choice) for choice in choices}

    first = [Choice(how, raster, swizzle) for how, raster, swizzle in itertools.product(built, RASTERS, (1, 4))]
    first += [Choice(how, "n", 1, splits) for how in built if how.stream_k for splits in (-1, 2, 4)]
    trial = runs(first)
    calls = max(2, min(20, int(1500 / max(1.0, burst_us(next(iter(trial.values())), 2)))))
    quick = {key: min(burst_us(run, calls) for _ in range(2)) for key, run in trial.items()}
    best = sorted(quick, key=quick.__getitem__)
    finalists = [Choice.parse(key) for key in best[:5]]
    leader = finalists[0]
    finalists += [Choice(leader.schedule, raster, swizzle, leader.splits) for raster in RASTERS for swizzle in (2, 8)]
    timed = compare_us(runs(list(dict.fromkeys(finalists))), burst_ms=3.0, rounds=3)
    everything = {key: quick[key] for key in best[5:]}
    return dict(sorted(timed.items(), key=lambda item: item[1])) | everything


def write_table(path: Path, results: Sequence[tuple[Shape, str, dict[str, float]]], machine: dict[str, Any]) -> None:
    """Writes the committed table: for each shape the fastest choice and its time."""
    entries = [
        {
            "epilogue": "plain",
            "shape": [shape.m, shape.n, shape.k],
            "fp32": out == "fp32",
            "choice": next(iter(times)),
            "us": round(next(iter(times.values())), 2),
        }
        for shape, out, times in results
    ]
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries)
    head = json.dumps({"machine": machine, "date": dt.date.today().isoformat()})
    path.write_text(f'{head[:-1]}, "entries": [\n{lines}\n]}}\n')
