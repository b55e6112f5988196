"""Contracts of the ops that do several others' work in one pass. Legend: T tokens, F features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops.shortcut import shorten


@custom_op("s24::mvue_pack_sum", mutates_args=())
def mvue_pack_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """`mvue_pack` of g [T, F], and the column sums of g (a bias gradient) in fp32 [F]."""
    return providers.run("mvue_pack_sum", g, seed, dtype, format)


@mvue_pack_sum.register_fake
def _(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(g.dtype, torch.float32)
    return *FORMATS[format].empty(g.shape[1], g.shape[0], dtype, g.device), g.new_empty((g.shape[1],), dtype=wide)


@custom_op("s24::pack_weights_", mutates_args=("patterns", "values", "metadata", "values_t", "metadata_t"))
def pack_weights_(
    weights: Sequence[Tensor],
    counts: Sequence[int],
    patterns: Sequence[Tensor],
    values: Sequence[Tensor],
    metadata: Sequence[Tensor],
    values_t: Sequence[Tensor],
    metadata_t: Sequence[Tensor],
    select: str,
    search: bool,
    format: str,
    weight_layout: str,
) -> None:
    """`pack_weight_` of many operands in a few launches; operand i has `counts[i]` of the weights and patterns."""
    operands = values, metadata, values_t, metadata_t
    providers.run("pack_weights_", weights, counts, patterns, *operands, select, search, format, weight_layout)


shorten(
    torch.ops.s24.pack_weights_.default,
    lambda *args: providers.run("pack_weights_", *args),
    mutated=(2, 3, 4, 5, 6),
)


@custom_op("s24::masked_decay_many_", mutates_args=("grads",))
def masked_decay_many_(
    grads: Sequence[Tensor], weights: Sequence[Tensor], patterns: Sequence[Tensor], kind: str, alpha: Tensor
) -> None:
    """`masked_decay_patterns_` of many gradients in a few launches, all by the same alpha (0-d)."""
    providers.run("masked_decay_many_", grads, weights, patterns, kind, alpha)


shorten(
    torch.ops.s24.masked_decay_many_.default,
    lambda *args: providers.run("masked_decay_many_", *args),
    mutated=(0,),
)
