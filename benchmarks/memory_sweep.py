"""Sweeps the tiles that kernels/triton/tiles.py fixes: `python benchmarks/memory_sweep.py FILE [i n]`.

Writes the best of each to FILE (JSON), which memory_kernels.py takes as --tiles. With `i n` it only compiles every
n-th variant from the i-th on, into Triton's cache: run n of these side by side first.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import memory_cases as cases
from benchmarks.timing import graph_us
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.tiles import Tile

SWEEP: dict[str, tuple[cases.Case, list[Tile]]] = {
    "BLOCKS_SEARCH": (
        cases.pack(8192, 8192, torch.bfloat16, "transposable", True),
        [
            Tile(64, 64, 4),
            Tile(64, 64, 4, 96),
            Tile(64, 64, 4, 80),
            Tile(64, 64, 2),
            Tile(64, 64, 2, 128),
            Tile(64, 64, 8),
        ],
    ),
    "BLOCKS_GIVEN": (
        cases.pack(8192, 8192, torch.bfloat16, "transposable", False),
        [Tile(64, 64, 4), Tile(128, 64, 8)],
    ),
    "ROWS": (
        cases.mvue_pack(16384, 8192, False),
        [
            Tile(64, 64, 4),
            Tile(64, 128, 8),
            Tile(64, 64, 2),
            Tile(64, 64, 2, 96),
            Tile(64, 128, 4, 96),
            Tile(128, 64, 4, 96),
        ],
    ),
    "ROWS_SUMS": (
        cases.mvue_pack(16384, 8192, False, sums=True),
        [Tile(64, 64, 4), Tile(64, 64, 2), Tile(64, 64, 2, 128), Tile(64, 128, 8), Tile(64, 128, 8, 64)],
    ),
    "BLOCKS_SEARCH_WIDE": (
        cases.pack(8192, 8192, torch.float32, "transposable", True),
        [Tile(64, 64, 4), Tile(64, 64, 4, 128), Tile(64, 64, 2), Tile(64, 64, 8)],
    ),
    "ROWS_ALONG": (
        cases.mvue_pack(16384, 8192, True),
        [Tile(64, 64, 4), Tile(64, 64, 2), Tile(64, 128, 4), Tile(64, 128, 8), Tile(64, 256, 8)],
    ),
    "SCALE": (
        cases.soft_threshold_scale(8192, 8192, torch.float32),
        [Tile(8, 512, 4), Tile(4, 512, 4), Tile(4, 1024, 4), Tile(8, 1024, 8)],
    ),
    "SCALE_TURNED": (
        cases.soft_threshold_scale(8192, 8192, torch.float32, turned=True),
        [Tile(128, 32, 4), Tile(128, 16, 4), Tile(256, 16, 4), Tile(128, 64, 8)],
    ),
    "FLIPS": (
        cases.flip_rate(8192, 8192),
        [Tile(1, 16384, 4), Tile(1, 8192, 4), Tile(1, 32768, 8), Tile(1, 8192, 8)],
    ),
    "GLU_TURNED": (
        cases.glu(16384, 11008, True),
        [Tile(64, 64, 8), Tile(128, 32, 4), Tile(64, 32, 4), Tile(128, 64, 8), Tile(128, 64, 16), Tile(64, 128, 8)],
    ),
    "GLU_GRADIENT_TURNED": (
        cases.glu_backward(16384, 11008, True),
        [Tile(64, 32, 4), Tile(64, 64, 8), Tile(64, 64, 16), Tile(128, 32, 8), Tile(128, 64, 16)],
    ),
}


def variants() -> Iterator[tuple[str, Tile]]:
    """Every (slot, tile) to try."""
    for slot, (_, choices) in SWEEP.items():
        for tile in choices:
            yield slot, tile


def with_tile(slot: str, tile: Tile, call: Callable[[], object]) -> Callable[[], object]:
    """The call, made under another tile."""

    def configured() -> object:
        setattr(tiles, slot, tile)
        return call()

    return configured


def compile_only(index: int, count: int) -> None:
    """Fills Triton's cache with a share of the variants."""
    for slot, tile in list(variants())[index::count]:
        with_tile(slot, tile, SWEEP[slot][0].make())()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def _numbers(tile: Tile) -> list[int | None]:
    return list(dataclasses.astuple(tile))


def main() -> None:
    """Command line."""
    if len(sys.argv) == 4:
        compile_only(int(sys.argv[2]), int(sys.argv[3]))
        return
    best: dict[str, list[int | None]] = {}
    for slot, (case, choices) in SWEEP.items():
        call = case.make()
        times = graph_us({str(i): [with_tile(slot, tile, call)] * 2 for i, tile in enumerate(choices)}, 7)
        order = sorted(times.items(), key=lambda item: item[1])
        best[slot] = _numbers(choices[int(order[0][0])])
        shown = " ".join(f"{_numbers(choices[int(i)])}:{us:.1f}" for i, us in order)
        print(f"{slot:20} {case.name}: {shown}".replace("None", "-"), flush=True)
        torch.cuda.empty_cache()
    Path(sys.argv[1]).write_text(json.dumps(best, indent=1))


if __name__ == "__main__":
    main()
