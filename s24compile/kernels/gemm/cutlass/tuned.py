"""Which schedule runs a shape: a committed table, made by `benchmarks/gemm.py --tune`, read at the nearest entry.

No tuning happens in training. Layouts and 16-bit types cost the same within 3% (measured), so an entry serves all of
them, and another all 8-bit types; epilogues differ in shared memory and in what they overlap, so each class of them has
its own entries.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, Literal

from s24compile.kernels.gemm.cutlass.instantiations import DEFAULT, EXACT, Schedule, Signature
from s24compile.kernels.gemm.cutlass.raster import choose_raster

TABLE = Path(__file__).with_name("tuned.json")
CLASSES = {"plain": "plain", "bias": "plain", "add": "plain", "dact_sum": "dact"}
"""Epilogues that share entries; the others have their own."""
NARROW_ROWS = "fp8 "
"""Begins the names of entries for 8-bit operands."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A schedule with its run-time settings."""

    schedule: Schedule = DEFAULT
    raster: Literal["m", "n"] = "n"
    """Direction in which consecutive blocks walk over D's tiles first."""
    swizzle: int = 1
    """Width of the band that they walk in, in tiles: reuse of A's and B's tiles in L2."""
    splits: int = 0
    """Stream-K only: 0 CUTLASS's heuristic, > 1 split-K, -1 always stream-K."""
    pdl: bool = True
    """Programmatic dependent launch: start while the previous kernel drains. Never with stream-K. Not in `name`."""

    @property
    def name(self) -> str:
        """The spelling of the table: schedule/raster/swizzle/splits."""
        return f"{self.schedule.name}/{self.raster}/{self.swizzle}/{self.splits}"

    @classmethod
    def parse(cls, name: str) -> Choice:
        """The inverse of `name`."""
        schedule, raster, swizzle, splits = name.split("/")
        return cls(Schedule.parse(schedule), "m" if raster == "m" else "n", int(swizzle), int(splits))


def choose(signature: Signature, m: int, n: int, k: int) -> Choice:
    """The choice of the nearest tuned shape: least sum of squared log-ratios of M, N and K.

    Where nothing was tuned, the default schedule with the raster that the model of raster.py prefers.
    """
    if signature.sums:
        return Choice(EXACT, *choose_raster(m, n, k, EXACT, signature.narrow))
    return _nearest(row_of(signature), signature.out == "fp32", signature.narrow, m, n, k)


def row_of(signature: Signature) -> str:
    """What the entries that serve a signature are called in the table."""
    row = CLASSES.get(signature.epilogue, signature.epilogue)
    return f"{NARROW_ROWS}{row}" if signature.narrow else row


@functools.lru_cache(maxsize=4096)
def _nearest(epilogue: str, wide: bool, narrow: bool, m: int, n: int, k: int) -> Choice:
    def distance(entry: dict[str, Any]) -> float:
        shape = zip(entry["shape"], (m, n, k), strict=True)
        return sum(math.log(tuned / asked) ** 2 for tuned, asked in shape) + 0.1 * (entry["fp32"] != wide)

    entries = [entry for entry in table()["entries"] if entry["epilogue"] == epilogue]
    if not entries:
        return Choice(DEFAULT, *choose_raster(m, n, k, DEFAULT, narrow))
    return Choice.parse(min(entries, key=distance)["choice"])


@functools.cache
def table() -> dict[str, Any]:
    """The committed table: where it was measured, and one entry per tuned shape."""
    if not TABLE.is_file():
        return {"entries": []}
    loaded: dict[str, Any] = json.loads(TABLE.read_text())
    return loaded


def schedules(narrow: bool = False) -> tuple[Schedule, ...]:
    """Every schedule that the table names, the default first: what `s24 build` builds for each signature."""
    entries = [entry for entry in table()["entries"] if entry["epilogue"].startswith(NARROW_ROWS) == narrow]
    return tuple(dict.fromkeys([DEFAULT, *(Choice.parse(entry["choice"]).schedule for entry in entries)]))
