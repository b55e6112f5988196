"""Passes over memory against the copy bandwidth: `python benchmarks/memory_kernels.py [--tiles FILE] [--warm i n]`.

Checks each kind of kernel against its reference, measures the copy bandwidth, then every case of issue 3's table in
CUDA graphs, and the paper's tables 2 and 3 as ratios. Writes results/memory_kernels.json and .png.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import memory_cases as cases
from benchmarks import memory_peers as peers
from benchmarks import record
from benchmarks.memory_checks import check
from benchmarks.timing import copy_gbs, eager_us, graph_us
from s24compile.kernels import ops
from s24compile.kernels.glu.triton import glu_into
from s24compile.kernels.triton import tiles

BF16, FP32 = torch.bfloat16, torch.float32
WEIGHTS = ((3072, 768), (6400, 1600), (4096, 4096), (11008, 4096), (8192, 8192), (28672, 8192))
TOKENS = (2048, 16384, 65536)
WIDTHS = (3072, 11008)


def all_cases() -> Iterator[cases.Case]:
    """The rows of the table."""
    for n, k in WEIGHTS:
        for dtype in (BF16, FP32):
            yield cases.pack(n, k, dtype, "transposable", True)
            yield cases.pack(n, k, dtype, "transposable", False)
        yield cases.masked_decay(n, k, FP32)
    yield cases.pack(8192, 8192, BF16, "transposable", True, turned=True)
    yield cases.pack(8192, 8192, FP32, "magnitude", True)
    yield cases.pack(8192, 8192, FP32, "soft_threshold", True)
    yield cases.masked_decay(8192, 8192, BF16)
    yield from format_cases()
    for dtype in (BF16, FP32):
        yield cases.soft_threshold_scale(8192, 8192, dtype)
    yield cases.soft_threshold_scale(8192, 8192, FP32, turned=True)
    yield cases.flip_rate(8192, 8192)
    for t in TOKENS:
        for f in WIDTHS:
            for turned in (False, True):
                yield cases.mvue_pack(t, f, turned)
                yield cases.glu(t, f, turned)
                yield cases.glu_backward(t, f, turned)
            yield cases.mvue_pack(t, f, False, sums=True)


def format_cases() -> Iterator[cases.Case]:
    """What the other formats cost beside "sm90": gate and up of Llama-7B interleaved, and 8.x's metadata."""
    for search in (True, False):
        for format in ("sm90", "sm90_gated"):
            yield cases.pack(22016, 4096, FP32, "transposable", search, format=format, parts=2)
        yield cases.pack(22016, 4096, FP32, "transposable", search, format="sm90_gated")
        yield cases.pack(8192, 8192, BF16, "transposable", search, format="sm80")
    for format in ("sm90", "sm90_gated"):
        yield cases.pack(22016, 4096, FP32, "magnitude", True, format=format, parts=2)
    for turned in (False, True):
        yield cases.mvue_pack(16384, 11008, turned, format="sm80")


def gpt2_weights() -> dict[str, Any]:
    """All FFN weights of GPT-2 124M (12 of 3072x768, 12 of 768x3072, fp32) packed by one op."""
    shapes = [(3072, 768), (768, 3072)] * 12
    weights = [cases.normal(*shape, dtype=FP32) for shape in shapes]
    patterns = [torch.zeros(n // 4, k // 4, dtype=torch.uint8, device="cuda") for n, k in shapes]
    values, metadata = zip(*(cases.packed(n, k) for n, k in shapes), strict=True)
    values_t, metadata_t = zip(*(cases.packed(k, n) for n, k in shapes), strict=True)
    buffers = patterns, list(values), list(metadata), list(values_t), list(metadata_t)
    moved = sum(n * k for n, k in shapes) * (4 + 2 + 0.25 + 1 / 16)
    result: dict[str, Any] = {"bytes": moved}
    for search in (True, False):

        def call(search: bool = search) -> None:
            ops.pack_weights_(weights, [1] * 24, *buffers, "transposable", search, "sm90", "out_in")

        name = "search" if search else "given"
        result[f"{name}_us"] = graph_us({name: [call]})[name]
        result[f"{name}_eager_us"], result[f"{name}_cpu_us"] = eager_us(call)
    return result


def tables() -> dict[str, Any]:
    """The paper's tables 2 (mask search) and 3 (column-major GEGLU)."""
    found: dict[str, Any] = {}
    for n, k in ((3072, 768), (6400, 1600), (8192, 8192)):
        w = cases.normal(n, k, dtype=FP32)
        times = graph_us(
            {
                "ours": [functools.partial(ops.transposable_patterns, w)],
                "convolution": [functools.partial(peers.search_by_convolution, w)],
                "two_approximation": [functools.partial(peers.search_by_two_approximation, w)],
            },
            3,
        )
        found[f"search {n}x{k} fp32"] = times
    for t, f in ((16384, 3072), (16384, 11008)):
        z, dh = cases.normal(t, 2 * f, turned=True), cases.normal(t, f, turned=True)
        h, dz = torch.empty_like(dh), torch.empty_like(z)
        times = graph_us(_geglu(z, h, dh, dz), 3)
        found[f"column-major GEGLU {t}x{f}"] = times
    return found


def _geglu(z: Tensor, h: Tensor, dh: Tensor, dz: Tensor) -> dict[str, list[Callable[[], object]]]:
    row_h, row_dz = h.contiguous(), dz.contiguous()
    return {
        "forward": [lambda: glu_into(z, h, "gelu", "first")],
        "forward, row-major result": [lambda: glu_into(z, row_h, "gelu", "first")],
        "forward, eager": [lambda: peers.geglu_eager(z)],
        "forward, row access": [lambda: peers.geglu_row_access(z, row_h)],
        "backward, row-major result": [lambda: ops.glu_backward(dh, z, "gelu", "first")],
        "backward, row access": [lambda: peers.geglu_backward_row_access(dh, z, row_dz)],
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One bar a case: its share of the copy bandwidth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    large = [row for row in rows if row["bytes"] >= 64e6]
    figure, axes = pyplot.subplots(figsize=(9, 0.16 * len(large) + 1))
    axes.barh([f"{row['name']}  {row['shape']}" for row in large], [row["fraction"] for row in large], color="tab:blue")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=6)
    axes.set_xlabel("share of the copy bandwidth measured in the same run (cases of 64 MB and more)")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tiles", type=Path, help="JSON of memory_sweep.py: tiles to use instead of the committed ones"
    )
    parser.add_argument("--warm", nargs=2, type=int, help="only compile every n-th case from the i-th on")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    options = parser.parse_args()
    if options.tiles:
        for slot, tile in json.loads(options.tiles.read_text()).items():
            setattr(tiles, slot, tiles.Tile(*tile))
    todo = list(all_cases())
    if options.warm:
        for case in [case for case in todo if case.bytes < 3e9][options.warm[0] :: options.warm[1]]:
            case.make()()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        return
    check()
    copy = copy_gbs()
    best = max(copy.values())
    print({name: round(speed) for name, speed in copy.items()})
    rows = []
    for case in todo:
        us = graph_us({case.name: case.calls()})[case.name]
        speed = case.bytes / us / 1e3
        rows.append(
            {
                "name": case.name,
                "shape": case.shape,
                "bytes": case.bytes,
                "us": us,
                "gbs": speed,
                "fraction": speed / best,
            }
        )
        print(
            f"{case.name:42} {case.shape:12} {case.bytes / 1e6:8.1f} MB {us:9.1f} us {speed:6.0f} GB/s "
            f"{speed / best:.3f}",
            flush=True,
        )
        torch.cuda.empty_cache()
    gpt2, papers = gpt2_weights(), tables()
    gpt2["bound_us"] = gpt2["bytes"] / best / 1e3
    print("GPT-2 124M, all FFN weights:", {name: round(value, 1) for name, value in gpt2.items()})
    for name, times in papers.items():
        print(name, {k: round(v, 1) for k, v in times.items()})
    picked = {slot: str(getattr(tiles, slot)) for slot in vars(tiles) if isinstance(getattr(tiles, slot), tiles.Tile)}
    measured = {"copy_gbs": copy, "tiles": picked, "rows": rows, "gpt2_124m": gpt2, "paper_tables_us": papers}
    record.write("memory_kernels", {**measured, "triton": _triton_version()}, options.out)
    if os.environ.get("S24_PLOT", "1") == "1":
        plot(rows, options.out / "memory_kernels.png")


def _triton_version() -> str:
    import triton

    return triton.__version__


if __name__ == "__main__":
    main()
