"""The timers of the benchmarks on a GPU made of a list: what is queued, held back and waited for, in which order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import timing


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the host did, in order; each piece of work takes 2 ms of the GPU."""
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at = 0

        def record(self) -> None:
            self.at = sum(2 for entry in done if entry.startswith("work"))

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: Any) -> float:
            return float(end.at - self.at)

    fake = SimpleNamespace(
        Event=Event, synchronize=lambda: done.append("wait"), _sleep=lambda cycles: done.append(f"hold {cycles}")
    )
    monkeypatch.setattr(torch, "cuda", fake)
    return done


def test_time_what_is_queued_behind_a_hold(queued: list[str]) -> None:
    assert timing.gpu_ms(lambda: queued.extend(["work", "work"]), hold=7) == 4.0
    assert queued == ["wait", "hold 7", "work", "work", "wait"]


def test_hold_nothing_back_unless_asked_to(queued: list[str]) -> None:
    assert timing.gpu_ms(lambda: queued.append("work")) == 2.0
    assert queued == ["work", "wait"]


def test_wait_for_nothing_while_the_cpu_is_timed(queued: list[str]) -> None:
    assert timing.queue_us(lambda: queued.append("work"), 9) > 0
    assert queued == ["wait", "hold 9", "work", "wait"]


def test_count_the_calls_of_a_burst_and_not_those_before_it(queued: list[str]) -> None:
    assert timing.burst_us(lambda i: queued.append(f"work {i}"), 3) == 2000.0
    assert [entry for entry in queued if entry.startswith("work")] == [f"work {i}" for i in (0, 0, 0, 1, 2)]


def test_let_competitors_take_turns_and_report_medians() -> None:
    order: list[str] = []
    times = {"a": iter([90.0, 1.0, 2.0, 9.0]), "b": iter([80.0, 5.0, 4.0, 3.0])}

    def timer(name: str) -> float:
        order.append(name)
        return next(times[name])

    found = timing.in_turns({"a": lambda: timer("a"), "b": lambda: timer("b")}, 3, warm_up=1)
    assert found == {"a": 2.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_compare_by_bursts_of_calls(queued: list[str]) -> None:
    found = timing.compare_us({"one": lambda i: queued.append("work"), "two": lambda i: queued.extend(["work"] * 2)})
    assert found == {"one": 2000.0, "two": 4000.0}
