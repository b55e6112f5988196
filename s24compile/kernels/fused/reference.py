"""Ops that do several others' work in one pass over memory; each is spelled here in the ops that it replaces.

Legend: T tokens (leading dims flattened), F hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.decay.reference import masked_decay_patterns_
from s24compile.kernels.mvue.reference import mvue_pack
from s24compile.kernels.pack.reference import each_operand, pack_weight_
from s24compile.kernels.patterns import PatternKind


def column_sums(g: Tensor) -> Tensor:
    """fp32 (fp64 for fp64) sums of g [T, F] over T: a bias gradient."""
    return g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32))


def mvue_pack_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """(values, metadata, sums): `mvue_pack` of g [T, F], and `column_sums` of the same g."""
    return *mvue_pack(g, seed, dtype, format), column_sums(g)


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
    """`pack_weight_` of many operands.

    Args:
        weights, patterns: those of the first operand, then those of the second, ...; `counts[i]` of operand i.
        values, metadata: one per operand; values_t, metadata_t: the same, or empty lists.
    """
    for operand in each_operand(weights, counts, patterns, values, metadata, values_t, metadata_t):
        pack_weight_(*operand, None, select, search, format, weight_layout)


def masked_decay_many_(
    grads: Sequence[Tensor], weights: Sequence[Tensor], patterns: Sequence[Tensor], kind: PatternKind, alpha: Tensor
) -> None:
    """`masked_decay_patterns_` of many gradients, all by the same alpha (0-d)."""
    for grad, w, pattern in zip(grads, weights, patterns, strict=True):
        masked_decay_patterns_(grad, w, pattern, kind, alpha)
