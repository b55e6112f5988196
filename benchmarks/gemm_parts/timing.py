"""GPU times of competing functions: interleaved, back to back on the GPU, medians.

A sleep kernel holds the stream while the CPU queues a burst, so no launch gap and no plan building on the CPU is
counted: what is compared is kernels. Bursts of ten milliseconds, long enough for the power limit to act, take turns,
so that all competitors see the same clock and power state (all of these GEMMs run at the power limit).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Run = Callable[[int], object]
"""Runs the competitor once on operand set number i (taken modulo the number of sets)."""

SLEEP_CYCLES_PER_US = 1900


def burst_us(run: Run, calls: int) -> float:
    """GPU microseconds per call of one burst."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run(0)  # loads modules and fills caches
    cpu = time.perf_counter()
    run(0)
    cpu_us = (time.perf_counter() - cpu) * 1e6
    torch.cuda.synchronize()
    torch.cuda._sleep(int(SLEEP_CYCLES_PER_US * (100 + 1.5 * cpu_us * calls)))
    begin.record()
    for i in range(calls):
        run(i)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e3 / calls


def compare_us(runs: Mapping[str, Run], burst_ms: float = 10.0, rounds: int = 5) -> dict[str, float]:
    """Median GPU microseconds per call of each competitor."""
    calls = {name: max(2, min(120, int(burst_ms * 1e3 / burst_us(run, 2)))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(burst_us(run, calls[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_us(run: Run, calls: int = 200) -> float:
    """CPU microseconds per call, the GPU kept busy elsewhere so that nothing is waited for.

    In a steady state, as in training: each operand set has been seen before.
    """
    for i in range(calls):
        run(i)
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP_CYCLES_PER_US * 20_000)
    begin = time.perf_counter()
    for i in range(calls):
        run(i)
    spent = time.perf_counter() - begin
    torch.cuda.synchronize()
    return spent * 1e6 / calls
