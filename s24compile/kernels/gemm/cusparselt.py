"""The provider "cusparselt" of `s24::mm`, on the library's own format."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.cusparselt.product import NAME, multiply, supported
from s24compile.kernels.gemm.dtypes import refuse_dtypes
from s24compile.kernels.packed import Packed24
from s24compile.kernels.providers import Provider


def supports(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> str | None:
    """16-bit operands that its own compressor packed. Any shape and strides."""
    if a.format != NAME:
        return f"it reads the cusparselt format, not {a.format}"
    return refuse_dtypes(a, b, bias, out_dtype)


def mm(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """`s24::mm` on cuSPARSELt."""
    return multiply(a, b, bias, out_layout, out_dtype)


PROVIDERS = {"mm": Provider(NAME, mm, supports, supported)}
"""Op name to provider: what `kernels.providers.find` reads."""
