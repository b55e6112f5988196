"""From one dtype to another, as every reference does it. A leaf beside `scaling`."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.scaling import quantised


def widen(x: Tensor) -> Tensor:
    """In the dtype of arithmetic: fp32, and fp64 for fp64."""
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds to `dtype`; fp8 and int8 saturate (int8 rounds to nearest even). No scale is applied."""
    if x.dtype == dtype:
        return x
    if dtype == torch.int8:
        return x.to(torch.float32).round().clamp(-128, 127).to(torch.int8)
    return quantised(x, 1.0, dtype) if dtype.itemsize == 1 else x.to(dtype)
