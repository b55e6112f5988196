"""Tolerances that are derived, not chosen.

A kernel may be twice as far from the exact (fp64) result as torch's own path of the same dtypes is, plus a band for
the final rounding: half an ulp of the largest result for each side's rounding, which is one epsilon of it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def largest_error(actual: Tensor, exact: Tensor) -> float:
    """max |actual - exact| in fp64; 0 for empty tensors."""
    assert actual.shape == exact.shape, f"shape {tuple(actual.shape)} instead of {tuple(exact.shape)}"
    return float((actual.detach().double() - exact.detach().double()).abs().max()) if exact.numel() else 0.0


def assert_as_close_as_torch(actual: Tensor, torchs: Tensor, exact: Tensor, what: str = "result") -> None:
    """Asserts that `actual` is at most twice as far from `exact` as `torchs` is, plus roundings of its dtype.

    Args:
        actual: what the kernel gave.
        torchs: what dense torch operations on the same dtypes give.
        exact: the fp64 result from the same (already rounded) inputs.
    """
    assert actual.dtype == torchs.dtype, f"{what} is {actual.dtype}, torch's is {torchs.dtype}"
    if not exact.numel():
        return
    # In fp64 `exact` is itself rounded: n terms summed in another order may differ by n epsilons; n <= 256 in tests.
    # In fp32 a BLAS has several kernels and orders of summation: torch's error is one draw of theirs, not the largest.
    roundings = {torch.float64: 256, torch.float32: 4}.get(actual.dtype, 1)
    band = roundings * torch.finfo(actual.dtype).eps * float(exact.detach().abs().max())
    error, allowed = largest_error(actual, exact), 2.0 * largest_error(torchs, exact) + band
    assert error <= allowed, f"{what} is off by {error:.3e}; twice torch's error plus a rounding is {allowed:.3e}"
