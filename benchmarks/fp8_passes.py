"""Passes in eight bits against the copy bandwidth: checked against their references to the bit, then timed.

    python benchmarks/fp8_passes.py                    the table: results/fp8_passes.json
    python benchmarks/fp8_passes.py --sweep FILE       sweeps kernels/fp8/triton_tiles.py first, writes the best to FILE
    python benchmarks/fp8_passes.py --tiles FILE       the table with the tiles of such a file

What is timed, and how many bytes it must move: fp8_cases.py. `amax` reads what the pass behind it reads again: "with
amax" counts both reads.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import record
from benchmarks.fp8_cases import E4M3, E5M2, FP32, SWEEP, all_cases, weight_arguments
from benchmarks.memory_cases import normal, seed
from benchmarks.timing import copy_gbs, graph_us
from s24compile.kernels import ops, providers
from s24compile.kernels.fp8 import triton_tiles as tiles
from s24compile.kernels.triton.tiles import Tile

NEEDS_GPU = True


def sweep(file: Path) -> None:
    """Times every tile of SWEEP, keeps the best ones for what follows, and writes them to `file`."""
    best = {}
    for slot, (case, variants) in SWEEP.items():
        times = {}
        for tile in variants:
            setattr(tiles, slot, tile)
            times[tile] = graph_us({case.name: case.calls()}, 5)[case.name]
            print(f"{slot} {tile} {times[tile]:.1f} us", flush=True)
            torch.cuda.empty_cache()
        fastest = min(times, key=times.__getitem__)
        setattr(tiles, slot, fastest)
        best[slot] = [fastest.rows, fastest.columns, fastest.warps, fastest.registers]
    file.write_text(json.dumps(best, indent=1) + "\n")


def check() -> None:
    """Every kind of pass against its reference, to the bit."""
    x = normal(2000, 1536)
    x[5, 7], x[9, 9], x[100] = float("inf"), float("nan"), 1e-30
    g = normal(2000, 1536)
    calls: list[tuple[str, Callable[[], tuple[Any, ...]]]] = [("amax", lambda: (x,))]
    for dtype in (E4M3, E5M2):
        views = [x, x.t(), x[:1999, :1001]]
        calls += [("quantise", functools.partial(_quantising, view, dtype)) for view in views]
        views = [g, g.t().contiguous().t(), g[:1999, :1001], x]
        calls += [("quantise_pack", functools.partial(_packing, view, dtype)) for view in views]
    for select, search, parts in (
        ("transposable", True, 1), ("transposable", False, 2), ("magnitude", True, 1), ("soft_threshold", True, 2),
    ):  # fmt: skip
        arguments = weight_arguments(2048, 1536, select, search, FP32, parts)
        calls.append(("pack_weights_fp8_", functools.partial(_copied, arguments)))
    for op, make in calls:
        results = []
        for provider in ("triton", "reference"):
            args = make()
            with providers.only(provider):
                found = getattr(ops, op)(*args)
            results.append(_tensors(args if found is None else found))
        for found, expected in zip(*results, strict=True):
            assert torch.equal(_bits(found), _bits(expected)), f"{op} must agree to the bit"
    print(f"{len(calls)} calls checked against the references", flush=True)


def _quantising(x: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    return x, ops.amax(x), dtype, "both"


def _packing(g: Tensor, dtype: torch.dtype) -> tuple[Any, ...]:
    return g, ops.amax(g), seed(), dtype, "sm90", True, False


def _copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return torch.utils._pytree.tree_map_only(Tensor, torch.clone, arguments)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bits(x: Tensor) -> Tensor:
    """Something that is equal where x is, NaN of either sign being one."""
    return x.float().nan_to_num(nan=12345.0) if x.is_floating_point() else x


def main() -> int:
    """Checks, sweeps on request, times; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, help="sweep first, write the best tiles to this file")
    parser.add_argument("--tiles", type=Path, help="use the tiles of this file")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    check()
    if given.tiles:
        for slot, tile in json.loads(given.tiles.read_text()).items():
            setattr(tiles, slot, Tile(*tile))
    if given.sweep:
        sweep(given.sweep)
    copy = copy_gbs()
    best = max(copy.values())
    print({name: round(speed) for name, speed in copy.items()}, flush=True)
    rows = []
    for case in all_cases():
        us = graph_us({case.name: case.calls()})[case.name]
        speed = case.bytes / us / 1e3
        row = {"name": case.name, "shape": case.shape, "bytes": case.bytes, "us": us}
        rows.append(row | {"gbs": speed, "fraction": speed / best})
        print(f"{case.name:42} {case.shape:12} {case.bytes / 1e6:8.1f} MB {us:9.1f} us {speed / best:.3f}", flush=True)
        torch.cuda.empty_cache()
    picked = {slot: str(getattr(tiles, slot)) for slot in SWEEP}
    record.write("fp8_passes", {"copy_gbs": copy, "tiles": picked, "rows": rows}, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
