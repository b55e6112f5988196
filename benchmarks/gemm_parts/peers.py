"""The competitors: cuBLAS in two layouts, and cuSPARSELt through torch with every algorithm it has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.gemm_parts.shapes import Shape
from benchmarks.timing import Run, burst_us


def cublas(weight: Tensor, bs: Sequence[Tensor], shape: Shape) -> dict[str, Run]:
    """Dense runs of the same product. `bs` are B [k, n] as the sparse kernel gets them.

    Forward: `X @ W.T` and `W @ X.T` with X.T contiguous. Gradient: `dZ.T @ X` both with dZ as it lies in memory
    ([T, F] row-major) and with a ready transpose.
    """
    sets = len(bs)
    if shape.gradient:
        dz = weight.t().contiguous()
        return {
            "dZ.T @ X": lambda i: torch.mm(dz.t(), bs[i % sets]),
            "dZt @ X": lambda i: torch.mm(weight, bs[i % sets]),
        }
    xs_t = [b.contiguous() for b in bs]
    return {
        "X @ W.T": lambda i: torch.mm(bs[i % sets].t(), weight.t()),
        "W @ Xt": lambda i: torch.mm(weight, xs_t[i % sets]),
    }


def cusparselt(weight24: Tensor, bs: Sequence[Tensor]) -> dict[str, Run]:
    """{"cusparselt alg i": run} with the fastest algorithm; empty where torch has no cuSPARSELt or refuses."""
    try:
        packed = torch._cslt_compress(weight24)
    except (RuntimeError, AttributeError):
        return {}
    sets = len(bs)

    def runner(alg: int, transpose: bool) -> Run:
        return lambda i: torch._cslt_sparse_mm(packed, bs[i % sets], alg_id=alg, transpose_result=transpose)

    best: tuple[float, int, bool] | None = None
    trials = 1 if 2 * weight24.numel() * bs[0].shape[1] > 2e12 else 2
    for transpose in (False, True):
        for alg in range(16):
            try:
                took = min(burst_us(runner(alg, transpose), 2) for _ in range(trials))
            except RuntimeError:
                break
            best = min(best or (took, alg, transpose), (took, alg, transpose))
    if best is None:
        return {}
    _, alg, transpose = best
    return {f"cusparselt alg {alg}{' transposed' * transpose}": runner(alg, transpose)}
