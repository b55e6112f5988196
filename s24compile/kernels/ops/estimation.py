"""Contracts of MVUE. Legend: g [T, F] or any shape; `seed` is one int64 element on g's device (or the CPU)."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops.contract import contract


@contract()
def mvue(g: Tensor, seed: Tensor, dim: int) -> Tensor:
    """Unbiased 2:4 estimate of g along `dim`; contiguous, g's shape and dtype."""
    return g.new_empty(g.shape)


@contract()
def mvue_pack(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """(values, metadata) of the sparse operand [F, T]: mvue of g^T along T."""
    return FORMATS[format].empty_whole(g.shape[1], g.shape[0], dtype, g.device)


@contract()
def mvue_pack_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """`mvue_pack` of g [T, F], and the column sums of g (a bias gradient) in fp32 [F]."""
    wide = torch.promote_types(g.dtype, torch.float32)
    return *FORMATS[format].empty_whole(g.shape[1], g.shape[0], dtype, g.device), g.new_empty((g.shape[1],), dtype=wide)
