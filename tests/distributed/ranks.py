"""Processes that run one function together over gloo: started once for all tests of distribution, reused by each.

A scenario is a function `(rank, world, **options) -> dict` at the top of a module, so that other processes find it by
name. What it returns must be picklable. A process that fails, or is killed, is started anew for the next scenario.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import queue
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT_S = 90


def _serve(rank: int, jobs: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    while (job := jobs.get()) is not None:
        number, module, name, world, store, options = job
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
        try:
            dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
            torch.manual_seed(0)
            torch._dynamo.reset()
            torch._dynamo.config.optimize_ddp = False
            answer = getattr(importlib.import_module(module), name)(rank, world, **options)
            dist.barrier()
            answers.put((number, rank, answer, None))
        except BaseException:
            answers.put((number, rank, None, traceback.format_exc()))
        finally:
            with contextlib.suppress(Exception):
                dist.destroy_process_group()
            gc.collect()


class Ranks:
    """Up to four processes, started when the first scenario needs them."""

    def __init__(self) -> None:
        self._context = mp.get_context("spawn")
        self._processes: list[tuple[Any, Any]] = []
        self._answers: Any = self._context.Queue()
        self._number = 0

    def run(self, scenario: Callable[..., dict[str, Any]], world: int = 2, **options: Any) -> list[dict[str, Any]]:
        """What each rank returned, by rank.

        Raises:
            AssertionError: a rank raised, with its traceback, or did not answer.
        """
        while len(self._processes) < world:
            jobs = self._context.Queue()
            process = self._context.Process(
                target=_serve, args=(len(self._processes), jobs, self._answers), daemon=True
            )
            process.start()
            self._processes.append((process, jobs))
        self._number += 1
        with tempfile.TemporaryDirectory() as folder:
            job = self._number, scenario.__module__, scenario.__name__, world, f"{folder}/store", options
            for _, jobs in self._processes[:world]:
                jobs.put(job)
            return self._collect(world)

    def _collect(self, world: int) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        latest = time.monotonic() + TIMEOUT_S
        while len(found) < world:
            try:
                number, rank, answer, problem = self._answers.get(timeout=1)
            except queue.Empty:
                dead = [rank for rank, (process, _) in enumerate(self._processes[:world]) if not process.is_alive()]
                if not dead and time.monotonic() < latest:
                    continue
                number, rank, answer = self._number, -1, None
                problem = f"the ranks {sorted(found)} have answered, and {dead} have died"
            if number != self._number:
                continue  # of a scenario that another rank has failed before
            if problem is not None:
                self.stop()  # the others may wait for the one that failed
                raise AssertionError(f"rank {rank}: {problem}")
            found[rank] = answer
        return [found[rank] for rank in range(world)]

    def kill(self, rank: int) -> None:
        """Ends one process, as a machine that fails does."""
        self._processes[rank][0].kill()
        self._processes[rank][0].join()

    def stop(self) -> None:
        """Ends all processes; the next scenario starts others."""
        for process, _ in self._processes:
            process.kill()
            process.join()
        self._processes = []
        self._answers = self._context.Queue()
