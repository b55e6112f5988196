"""What the fused epilogues cost beside the plain GEMM, against the time that their extra bytes would take alone."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gemm_parts.operands import random_sparse
from benchmarks.gemm_parts.ours import activations
from benchmarks.gemm_parts.shapes import Shape
from benchmarks.gemm_parts.timing import compare_us
from s24compile.kernels.gemm.cutlass import launch
from s24compile.kernels.gemm.cutlass.tuned import Choice

COPY_BYTES_PER_US = 3.0e6
"""Device copy, read + write, measured on an H100 80GB."""


def time_epilogues(shape: Shape, act: str = "gelu", choices: tuple[Choice | None, ...] = (None,)) -> dict[str, Any]:
    """Microseconds of fw1 plain, with activation (Z and H written), and with the derivative (Z read), also summed."""
    dtype, (m, n, k) = torch.bfloat16, (shape.m, shape.n, shape.k)
    s = random_sparse(m, k, dtype, "cuda")
    bs = activations(shape, dtype, 3)
    bias = torch.randn(m, device="cuda", dtype=dtype)
    zs = [torch.randn(n, m, device="cuda", dtype=dtype).t() for _ in range(3)]
    packed = (s.values, s.metadata, m, k)
    runs: dict[str, Any] = {}
    for choice in choices:
        tag = f" {choice.name}" if choice else ""
        runs |= {
            f"plain{tag}": lambda i, c=choice: launch.mm(*packed, bs[i % 3], None, "col", dtype, c),
            f"act{tag}": lambda i, c=choice: launch.mm_act(*packed, bs[i % 3], bias, act, "col", c),
            f"dact{tag}": lambda i, c=choice: launch.mm_dact(*packed, bs[i % 3], zs[i % 3], act, "col", c),
            f"dact_sum{tag}": lambda i, c=choice: launch.mm_dact_sum(*packed, bs[i % 3], zs[i % 3], act, "col", c),
        }
    times = compare_us(runs)
    return {"shape": [m, n, k], "act": act, "us": times, "extra_bytes_us": 2 * m * n / COPY_BYTES_PER_US}
