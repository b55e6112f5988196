"""Contracts of packing. Legend: w [m, k]; N, K logical rows and columns of one or more stacked weights."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops.contract import contract
from s24compile.kernels.packed import Packed24
from s24compile.kernels.stacks import Packing, Stack, Stacks

BUFFERS = ("patterns", "values", "metadata", "values_t", "metadata_t")
"""What is written where weights are packed; version counters move."""


@contract()
def pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """(values, metadata) of w * mask, or of w itself, which must then be 2:4 (MaskError)."""
    return FORMATS[format].empty(w.shape[0], w.shape[1], dtype, w.device)


@contract()
def unpack(a: Packed24) -> Tensor:
    """Dense [rows, cols], contiguous, in the dtype of the values."""
    return a.values.new_empty(a.shape)


@contract()
def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values, metadata, values_t, metadata_t) of w * mask and of its transpose, from one read of w.

    The transpose is of the format `Format.transposed`.
    """
    m, k = w.shape
    layout = FORMATS[format]
    return *layout.empty(m, k, dtype, w.device), *FORMATS[layout.transposed].empty(k, m, dtype, w.device)


@contract(mutates=BUFFERS, short=True)
def pack_weight_(stack: Stack, scale: Tensor | None, packing: Packing) -> None:
    """Packs stacked weights into static buffers, in place.

    Args:
        scale: 0-d, or one per weight; "soft_threshold" packs scale * S(w).
    """


@contract(mutates=BUFFERS, short=True)
def pack_weights_(stacks: Stacks, packing: Packing) -> None:
    """`pack_weight_` of many operands in a few launches, without scales."""
