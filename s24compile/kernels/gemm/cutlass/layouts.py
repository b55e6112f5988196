"""Operands and outputs in the layouts and alignment that TMA reads and writes, copied only where they are not.

TMA asks for base addresses and pitches that are multiples of 16 bytes; odd N, odd storage offsets and expanded tensors
break that, and go through a padded buffer.
"""

from __future__ import annotations

import torch

from s24compile.kernels.padding import round_up


def operand(t: torch.Tensor, row_major: str, col_major: str) -> tuple[str, torch.Tensor, int]:
    """Which direction of a 2-D operand is contiguous, the operand (copied if TMA cannot take it), and its pitch."""
    (rows, cols), (down, right), unit = t.shape, t.stride(), 16 // t.element_size()
    if right == 1 and (down >= cols or rows == 1):
        pitch = down if rows > 1 else round_up(cols, unit)
        if pitch % unit == 0 and t.data_ptr() % 16 == 0:
            return row_major, t, pitch
    elif down == 1 and (right >= rows or cols == 1):
        pitch = right if cols > 1 else round_up(rows, unit)
        if pitch % unit == 0 and t.data_ptr() % 16 == 0:
            return col_major, t, pitch
        if pitch != 0:
            copy = t.new_empty((cols, round_up(rows, unit)))
            copy[:, :rows].copy_(t.t())
            return col_major, copy.t()[:rows], copy.shape[1]
    copy = t.new_empty((rows, round_up(cols, unit)))
    copy[:, :cols].copy_(t)
    return row_major, copy[:, :cols], copy.shape[1]


def output(m: int, n: int, layout: str, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the kernel writes, what the caller gets): two tensors only where D's rows are no multiple of 16 bytes."""
    d = empty(m, n, layout, dtype, device)
    align = 16 // dtype.itemsize
    inner = n if layout == "row" else m
    if inner % align == 0:
        return d, d
    wide = round_up(inner, align)
    return (empty(m, wide, layout, dtype, device) if layout == "row" else empty(wide, n, layout, dtype, device)), d


def like_output(source: torch.Tensor, target: torch.Tensor, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """`source` [M, N] in D's dtype, layout and alignment."""
    inner = 1 if layout == "row" else 0
    pitch = source.stride(1 - inner)
    aligned = pitch * dtype.itemsize % 16 == 0 and pitch >= source.shape[inner] and source.data_ptr() % 16 == 0
    if source.dtype == dtype and source.stride(inner) == 1 and aligned:
        return source
    copy = torch.empty_strided(target.shape, target.stride(), dtype=dtype, device=target.device)
    copy[: source.shape[0], : source.shape[1]].copy_(source)
    return copy


def empty(m: int, n: int, layout: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """D [M, N] as the op's fake says: "row" has strides (N, 1), "col" (1, M)."""
    return torch.empty_strided((m, n), (n, 1) if layout == "row" else (1, m), dtype=dtype, device=device)
