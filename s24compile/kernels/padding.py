"""Making operands fit kernels that take whole blocks only: zeros around them, and the result cut out again.

Legend: A [m, k] sparse, B [k, n] dense, C [m, n].
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes that both libraries, and TMA, want addresses to be multiples of."""


def round_up(size: int, to: int = 8) -> int:
    """The next multiple of `to` (8: 16 bytes in 16-bit elements)."""
    return (size + to - 1) // to * to


def dense_operand(b: Tensor, rows: int, cols: int) -> Tensor:
    """B [k, n] with zeros up to [rows, cols]: row- or column-major, as it was, without gaps and on 16 bytes.

    B itself where it is all of that already.
    """
    by_columns = not b.is_contiguous() and b.t().is_contiguous()
    whole = b.shape == (rows, cols)
    if whole and (by_columns or b.is_contiguous()) and b.data_ptr() % ALIGNMENT == 0:
        return b
    if by_columns or (b.stride(0) == 1 and b.stride(1) != 1):
        return dense_operand(b.t(), cols, rows).t()
    padded = b.new_empty((rows, cols)) if whole else b.new_zeros((rows, cols))
    padded[: b.shape[0], : b.shape[1]].copy_(b)
    return padded


def empty_rows(rows: int, cols: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[rows, cols] of eight-bit elements with a row pitch of whole 16 bytes."""
    # Not a slice of [rows, pitch]: where sizes are symbols that would guard on cols mod 16.
    return torch.empty_strided((rows, cols), (round_up(cols, ALIGNMENT), 1), dtype=dtype, device=device)


def bias_vector(bias: Tensor | None, rows: int, dtype: torch.dtype) -> Tensor | None:
    """A bias [m] in `dtype`, contiguous, with zeros up to [rows]. Its rounding is that of `torch.autocast`."""
    if bias is None:
        return None
    bias = bias.to(dtype).contiguous()
    return bias if bias.shape[0] == rows else torch.nn.functional.pad(bias, (0, rows - bias.shape[0]))


def result(c: Tensor, rows: int, cols: int, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """What `s24::mm` returns, from C with its padding, in any strides. One copy, or none where C is that already."""
    strides = (max(cols, 1), 1) if out_layout == "row" else (1, max(rows, 1))
    if c.shape == (rows, cols) and c.stride() == strides and c.dtype == out_dtype:
        return c
    return torch.empty_strided((rows, cols), strides, dtype=out_dtype, device=c.device).copy_(c[:rows, :cols])


def empty_result(b: Tensor, bias: Tensor | None, rows: int, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """C where m, k or n is 0: nothing, or sums of nothing plus the bias."""
    zeros = b.new_zeros((rows, b.shape[1]))
    return result(zeros if bias is None else zeros + bias[:, None], rows, b.shape[1], out_layout, out_dtype)
