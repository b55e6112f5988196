"""Contracts of MVUE. Legend: g [T, F] or any shape; `seed` is one int64 element on g's device (or the CPU)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS


@custom_op("s24::mvue", mutates_args=())
def mvue(g: Tensor, seed: Tensor, dim: int) -> Tensor:
    """Unbiased 2:4 estimate of g along `dim`; contiguous, g's shape and dtype."""
    return providers.run("mvue", g, seed, dim)


@mvue.register_fake
def _(g: Tensor, seed: Tensor, dim: int) -> Tensor:
    return g.new_empty(g.shape)


@custom_op("s24::mvue_pack", mutates_args=())
def mvue_pack(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """(values, metadata) of the sparse operand [F, T]: mvue of g^T along T."""
    return providers.run("mvue_pack", g, seed, dtype, format)


@mvue_pack.register_fake
def _(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    return FORMATS[format].empty(g.shape[1], g.shape[0], dtype, g.device)
