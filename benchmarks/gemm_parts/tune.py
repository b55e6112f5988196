"""Sweeps schedules, raster orders and swizzles over the shapes, and writes the table that `tuned.py` reads."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.gemm_parts.operands import random_sparse
from benchmarks.gemm_parts.ours import activations, sparse_mm
from benchmarks.gemm_parts.shapes import Shape
from benchmarks.timing import Run, burst_us, compare_us
from s24compile.kernels.gemm.cutlass import gated, launch, objects
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, Schedule, Signature
from s24compile.kernels.gemm.cutlass.tuned import NARROW_ROWS, Choice, row_of

SCHEDULES = tuple(
    Schedule.parse(name)
    for name in (
        "128x256_2x1_coop_deep", "128x256_1x1_coop_deep", "128x192_2x1_coop_deep", "128x160_2x1_coop_deep",
        "128x192_2x1_ping", "128x256_2x1_coop_sk_deep",
    )
)  # fmt: skip
"""What NOTES-gemm.md found worth trying: the same without `deep` is up to 4% slower everywhere."""
LARGE = 2e12
"""Operations above which only the largest tile is tried: there are many waves of it, and smaller ones read more."""
RASTERS: tuple[Literal["m", "n"], ...] = ("m", "n")
Epilogue = Literal["plain", "act", "dact", "glu", "dglu"]


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What the sweep of one shape found: {choice name: microseconds}, the finalists first, fastest first."""

    shape: Shape
    times: dict[str, float]
    row: str
    """What its entries are called in the table."""

    @property
    def entry(self) -> dict[str, Any]:
        """The line of the committed table."""
        best = next(iter(self.times))
        dims = [self.shape.m, self.shape.n, self.shape.k]
        return {
            "epilogue": self.row, "shape": dims, "fp32": False, "choice": best, "us": round(self.times[best], 2)
        }  # fmt: skip


def signature(shape: Shape, epilogue: Epilogue = "plain") -> Signature:
    """The kernel that training runs for `shape`, in bf16 (other types and layouts cost the same within 3%)."""
    if shape.gradient:
        return Signature("bf16", "k", "n", "row", "bf16")
    if epilogue == "plain":
        return Signature("bf16", "k", "k", "col", "bf16")
    act = "silu" if epilogue.endswith("glu") else "gelu"
    return Signature("bf16", "k", "k", "col", "bf16", epilogue, act, "bf16" if epilogue == "act" else "")


def runner(shape: Shape, epilogue: Epilogue) -> Callable[[Choice], Run]:
    """choice -> a run of `shape` on fresh operands under that choice."""
    dtype, (m, n, k) = torch.bfloat16, (shape.m, shape.n, shape.k)
    s = random_sparse(m, k, dtype, "cuda")
    bs = activations(shape, dtype, 2)
    if epilogue == "plain":
        return lambda choice: sparse_mm(s, bs, shape, dtype, choice)
    packed = s.packed("sm90_gated" if epilogue == "glu" else "sm90")
    if epilogue == "act":
        bias = torch.randn(m, device="cuda", dtype=dtype)
        return lambda choice: lambda i: launch.mm_act(packed, bs[i % 2], bias, "gelu", "col", choice)
    if epilogue == "glu":
        return lambda choice: lambda i: gated.mm_glu(packed, bs[i % 2], "silu", "first", choice)
    if epilogue == "dglu":
        z = torch.randn(n, 2 * m, device="cuda", dtype=dtype).t()
        return lambda choice: lambda i: gated.mm_dglu(packed, bs[i % 2], z, "silu", "first", choice)
    z = torch.randn(n, m, device="cuda", dtype=dtype).t()
    return lambda choice: lambda i: launch.mm_dact(packed, bs[i % 2], z, "gelu", "col", choice)


def tune(shape: Shape, epilogue: Epilogue = "plain") -> Tuned:
    """`sweep` in bf16."""
    return sweep(shape, signature(shape, epilogue), runner(shape, epilogue), SCHEDULES)


def sweep(shape: Shape, signature: Signature, run: Callable[[Choice], Run], schedules: Sequence[Schedule]) -> Tuned:
    """Two rounds: every built schedule with every raster order and two swizzles in short bursts; then the five fastest,
    and the fastest one's other swizzles, interleaved, by medians.
    """
    if shape.flops > LARGE:
        schedules = [how for how in schedules if how.tile == (128, 256) and not how.stream_k]
    kernels = [Kernel(signature, how) for how in schedules]
    built = [kernel.schedule for kernel in kernels if objects.object_path(kernel) is not None]
    first = [Choice(how, raster, swizzle) for how, raster, swizzle in itertools.product(built, RASTERS, (1, 4))]
    first += [Choice(how, "n", 1, splits) for how in built if how.stream_k for splits in (-1, 2, 4)]
    trial = {choice.name: run(choice) for choice in first}
    calls = max(2, min(20, int(1500 / max(1.0, burst_us(next(iter(trial.values())), 2)))))
    quick = {name: min(burst_us(each, calls) for _ in range(2)) for name, each in trial.items()}
    order = sorted(quick, key=quick.__getitem__)
    finalists = [Choice.parse(name) for name in order[:5]]
    leader = finalists[0]
    finalists += [Choice(leader.schedule, raster, swizzle, leader.splits) for raster in RASTERS for swizzle in (2, 8)]
    timed = compare_us({choice.name: run(choice) for choice in finalists}, burst_ms=3.0, rounds=3)
    rest = {name: quick[name] for name in order[5:] if name not in timed}
    return Tuned(shape, dict(sorted(timed.items(), key=lambda item: item[1])) | rest, row_of(signature))


def write_table(path: Path, results: Sequence[Tuned], machine: dict[str, Any]) -> None:
    """Writes the committed table: for each shape the fastest choice and its time.

    Entries of other shapes, and those of the other width of operands, stay: a sweep may be cut, or take several runs.
    """
    old = json.loads(path.read_text()) if path.is_file() else {"entries": []}
    entries = {_key(entry): entry for entry in (*old.pop("entries"), *(result.entry for result in results))}
    measured = {"machine": machine, "date": dt.date.today().isoformat()}
    narrow = all(result.row.startswith(NARROW_ROWS) for result in results)
    head = json.dumps(old | ({NARROW_ROWS.strip(): measured} if narrow else measured))
    lines = ",\n".join("  " + json.dumps(entry) for entry in entries.values())
    path.write_text(f'{head[:-1]}, "entries": [\n{lines}\n]}}\n')


def _key(entry: dict[str, Any]) -> tuple[object, ...]:
    return entry["epilogue"], tuple(entry["shape"]), entry["fp32"]
