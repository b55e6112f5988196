"""Which dtypes the 2:4 GEMMs of every library take. A leaf."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.packed import Packed24


def refuse_dtypes(a: Packed24, b: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> str | None:
    """A sentence unless the operands share a 16-bit dtype, and output and bias are of it or of fp32."""
    if a.dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bf16 and fp16 operands, not {short(a.dtype)}"
    if b.dtype != a.dtype:
        return f"the operands have two dtypes, {short(a.dtype)} and {short(b.dtype)}"
    if out_dtype not in (a.dtype, torch.float32):
        return f"it writes {short(a.dtype)} or fp32, not {short(out_dtype)}"
    if bias is not None and bias.dtype not in (a.dtype, torch.float32):
        return f"it takes a bias in {short(a.dtype)} or fp32, not {short(bias.dtype)}"
    return None


def short(dtype: torch.dtype) -> str:
    """A dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")
