"""The timers of all benchmarks: GPU time without launch gaps, CPU time without waiting, competitors in turns, medians.

GPU time is taken between two events. Where the CPU could be slower than the GPU, a sleep kernel holds the stream while
the CPU queues the work (`hold`, in GPU cycles), or the work is captured into a CUDA graph and replayed: either way no
launch gap and no plan building is counted, and what is compared is kernels. Competitors take turns in bursts of ten
milliseconds and more, long enough for the power limit to act, so that all of them see the same clock and power state.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Call = Callable[[], object]
Run = Callable[[int], object]
"""Runs the competitor once on operand set number i (taken modulo the number of sets)."""

CYCLES_PER_US = 1900
"""GPU cycles of a hold that pass in a microsecond, about: an H100's clock is 1.2 to 1.98 GHz."""


def gpu_ms(work: Call, hold: int = 0) -> float:
    """GPU milliseconds of what `work` queues, which is held back for `hold` cycles after everything before is done."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if hold:
        torch.cuda.synchronize()
        torch.cuda._sleep(hold)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def queue_us(work: Call, hold: int) -> float:
    """CPU microseconds that `work` takes while the GPU is held for `hold` cycles, so that nothing is waited for."""
    torch.cuda.synchronize()
    torch.cuda._sleep(hold)
    begin = time.perf_counter()
    work()
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent * 1e6


def in_turns(timers: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: int = 0) -> dict[str, float]:
    """The median of what each timer returns in `rounds` rounds; in a round each is called once.

    Args:
        warm_up: rounds before those, whose times are thrown away.
    """
    times: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(warm_up + rounds):
        for name, timer in timers.items():
            taken = timer()
            if number >= warm_up:
                times[name].append(taken)
    return {name: statistics.median(taken) for name, taken in times.items()}


def burst_us(run: Run, calls: int) -> float:
    """GPU microseconds per call of one burst."""
    run(0)  # loads modules and fills caches
    begin = time.perf_counter()
    run(0)
    cpu_us = (time.perf_counter() - begin) * 1e6
    hold = int(CYCLES_PER_US * (100 + 1.5 * cpu_us * calls))
    return gpu_ms(lambda: repeat(run, calls), hold) * 1e3 / calls


def compare_us(runs: Mapping[str, Run], burst_ms: float = 10.0, rounds: int = 5) -> dict[str, float]:
    """Median GPU microseconds per call of each competitor."""
    calls = {name: max(2, min(120, int(burst_ms * 1e3 / burst_us(run, 2)))) for name, run in runs.items()}
    return in_turns({name: functools.partial(burst_us, run, calls[name]) for name, run in runs.items()}, rounds)


def cpu_us(run: Run, calls: int = 200) -> float:
    """CPU microseconds per call, the GPU kept busy elsewhere so that nothing is waited for.

    In a steady state, as in training: each operand set has been seen before.
    """
    repeat(run, calls)
    return queue_us(lambda: repeat(run, calls), CYCLES_PER_US * 20_000) / calls


def eager_us(call: Call, count: int = 20) -> tuple[float, float]:
    """(microseconds a call until the GPU is done, microseconds of CPU time a call), as a loop in Python calls it."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    queued = time.perf_counter()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count * 1e6, (queued - begin) / count * 1e6


def graph_us(variants: Mapping[str, Sequence[Call]], rounds: int = 9) -> dict[str, float]:
    """Median microseconds of one call of each variant, whose calls are one CUDA graph: for memory-bound kernels.

    The calls of a variant should work on different inputs that together exceed the GPU's cache (50 MB).
    """
    graphs = {name: captured(calls) for name, calls in variants.items()}
    replays = {name: functools.partial(gpu_ms, graph.replay) for name, graph in graphs.items()}
    whole = in_turns(replays, rounds, warm_up=1)
    return {name: ms * 1e3 / len(variants[name]) for name, ms in whole.items()}


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """All calls in one CUDA graph: their launches cost no CPU time when it is replayed."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def repeat(run: Run, calls: int) -> None:
    """Runs operand sets 0, 1, ... of one competitor."""
    for i in range(calls):
        run(i)


def copy_gbs(size_bytes: int = 1 << 30) -> dict[str, float]:
    """GB/s, read plus written, of a device-to-device copy: by the driver, and by an elementwise kernel of torch."""
    sources = [torch.randn(size_bytes // 4, device="cuda") for _ in range(2)]
    targets = [torch.empty_like(s) for s in sources]
    pairs = list(zip(sources, targets, strict=True))
    ways: dict[str, list[Call]] = {
        "memcpy": [functools.partial(t.copy_, s) for s, t in pairs],
        "kernel": [functools.partial(torch.neg, s, out=t) for s, t in pairs],
    }
    return {name: 2 * size_bytes / us / 1e3 for name, us in graph_us(ways).items()}
