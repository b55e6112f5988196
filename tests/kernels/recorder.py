"""Stands where CUTLASS's kernels would be loaded: notes which are asked for and what they are handed; runs on a CPU."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from s24compile.kernels.gemm.cutlass import loader, plan
from s24compile.kernels.gemm.cutlass.instantiations import Kernel

FIELDS = (
    *("values", "metadata", "b", "d", "source", "aux", "bias", "descale_a", "descale_b", "amax"),
    *("workspace", "workspace_bytes"),
    *("values_stride", "metadata_stride", "b_stride", "d_stride", "aux_stride", "other"),
    *("m", "n", "k", "raster", "swizzle", "splits", "device", "sm_count", "metadata_rows", "pdl", "alpha", "beta"),
)  # fmt: skip
"""Of `struct Problem` in sparse_gemm.cuh."""
STREAM, MULTIPROCESSORS, WORKSPACE_BYTES = 7, 132, 4096
"""What the recorder answers when it is asked."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One launch."""

    kernel: Kernel
    problem: dict[str, Any]
    """By the names of FIELDS."""


def _fill_partial_sums(call: Call) -> None:
    """Each tile's sum of its row r is r; rows beyond M get NaN."""
    m, n = call.problem["m"], call.problem["n"]
    tile_m, tile_n = call.kernel.schedule.tile
    width = -(-m // tile_m) * tile_m
    buffer = (ctypes.c_float * (-(-n // tile_n) * width)).from_address(call.problem["bias"])
    buffer[:] = [float(r) if r < m else math.nan for _ in range(-(-n // tile_n)) for r in range(width)]


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Within it, launches are noted in the list and write nothing, but for the partial sums of "dact_sum"."""
    calls: list[Call] = []

    def load(kernel: Kernel) -> loader.Loaded:
        def gemm(problem: bytes, stream: int) -> int:
            assert stream == STREAM
            call = Call(kernel, dict(zip(FIELDS, loader.PROBLEM.unpack(problem), strict=True)))
            calls.append(call)
            if kernel.signature.epilogue == "dact_sum":
                _fill_partial_sums(call)
            return 0

        return loader.Loaded(kernel, gemm, lambda problem: WORKSPACE_BYTES)

    plan.make_plan.cache_clear()
    with (
        mock.patch.dict(plan._NEEDS, clear=True),
        mock.patch.object(plan, "_load", load),
        mock.patch.object(plan, "_sm_count", return_value=MULTIPROCESSORS),
        mock.patch.object(plan, "_workspace", lambda need, device, stream: torch.empty(need, dtype=torch.uint8)),
        mock.patch.object(torch._C, "_cuda_getCurrentRawStream", return_value=STREAM, create=True),
    ):
        try:
            yield calls
        finally:
            plan.make_plan.cache_clear()
