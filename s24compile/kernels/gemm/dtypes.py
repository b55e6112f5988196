"""Which dtypes the 2:4 GEMMs of every library take. A leaf."""

from __future__ import annotations

import torch
from torch import Tensor


def refuse_dtypes(values: Tensor, b: Tensor, bias: Tensor | None, out_dtype: torch.dtype) -> str | None:
    """A sentence unless the operands share a 16-bit dtype, and output and bias are of it or of fp32."""
    if values.dtype not in (torch.bfloat16, torch.float16):
        return f"it takes bf16 and fp16 operands, not {short(values.dtype)}"
    if b.dtype != values.dtype:
        return f"the operands have two dtypes, {short(values.dtype)} and {short(b.dtype)}"
    if out_dtype not in (values.dtype, torch.float32):
        return f"it writes {short(values.dtype)} or fp32, not {short(out_dtype)}"
    if bias is not None and bias.dtype not in (values.dtype, torch.float32):
        return f"it takes a bias in {short(values.dtype)} or fp32, not {short(bias.dtype)}"
    return None


def short(dtype: torch.dtype) -> str:
    """A dtype's name without "torch."."""
    return str(dtype).removeprefix("torch.")
