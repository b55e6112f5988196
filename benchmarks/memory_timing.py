"""Timing of memory-bound kernels: CUDA graphs over rotated inputs, variants interleaved, medians."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

Call = Callable[[], object]


def graph(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """All calls in one CUDA graph: their launches cost no CPU time when it is replayed."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for call in calls:
            call()
    return captured


def medians_us(variants: Mapping[str, Sequence[Call]], rounds: int = 9) -> dict[str, float]:
    """Median microseconds of one call of each variant. The calls of a variant should work on different inputs that
    together exceed the GPU's cache (50 MB). Variants take turns, so that none has the cooler GPU."""
    graphs = {name: (graph(calls), len(calls)) for name, calls in variants.items()}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, (captured, count) in graphs.items():
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            captured.replay()
            stop.record()
            stop.synchronize()
            if turn:
                times[name].append(start.elapsed_time(stop) * 1e3 / count)
    return {name: statistics.median(values) for name, values in times.items()}


def copy_gbs(size_bytes: int = 1 << 30) -> dict[str, float]:
    """GB/s, read plus written, of a device-to-device copy: by the driver, and by an elementwise kernel of torch."""
    sources = [torch.randn(size_bytes // 4, device="cuda") for _ in range(2)]
    targets = [torch.empty_like(s) for s in sources]
    pairs = list(zip(sources, targets, strict=True))
    ways = {
        "memcpy": [lambda s=s, t=t: t.copy_(s) for s, t in pairs],
        "kernel": [lambda s=s, t=t: torch.neg(s, out=t) for s, t in pairs],
    }
    return {name: 2 * size_bytes / us / 1e3 for name, us in medians_us(ways).items()}
