"""The sparse GEMM under test, called the way training calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.gemm_parts.operands import Sparse
from benchmarks.gemm_parts.shapes import Shape
from benchmarks.timing import Run
from s24compile.kernels.gemm.cutlass import launch, tuned


def layout(shape: Shape) -> str:
    """Column-major D for activations (its transpose is row-major [T, m]); row-major weight gradients."""
    return "row" if shape.gradient else "col"


def sparse_mm(
    s: Sparse, bs: Sequence[Tensor], shape: Shape, out: torch.dtype, choice: tuned.Choice | None = None
) -> Run:
    """S B over rotating B; `choice` None: the tuned table's."""
    a, sets, how = s.packed(), len(bs), layout(shape)
    return lambda i: launch.mm(a, bs[i % sets], None, how, out, choice)


def activations(shape: Shape, dtype: torch.dtype, sets: int) -> list[Tensor]:
    """B [k, n]: X.T of row-major activations X [T, k], or for gradients X [T, n] itself."""
    if shape.gradient:
        return [torch.randn(shape.k, shape.n, device="cuda", dtype=dtype) for _ in range(sets)]
    return [torch.randn(shape.n, shape.k, device="cuda", dtype=dtype).t() for _ in range(sets)]
