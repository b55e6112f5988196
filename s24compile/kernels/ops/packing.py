"""Contracts of packing. Legend: w [m, k]; N, K logical rows and columns of one or more stacked weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops.shortcut import shorten


@custom_op("s24::pack", mutates_args=())
def pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """(values, metadata) of w * mask, or of w itself, which must then be 2:4 (MaskError)."""
    return providers.run("pack", w, mask, dtype, format)


@pack.register_fake
def _(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    return FORMATS[format].empty(w.shape[0], w.shape[1], dtype, w.device)


@custom_op("s24::unpack", mutates_args=())
def unpack(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str) -> Tensor:
    """Dense [rows, cols], contiguous, in the dtype of the values."""
    return providers.run("unpack", values, metadata, rows, cols, format)


@unpack.register_fake
def _(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str) -> Tensor:
    return values.new_empty((rows, cols))


@custom_op("s24::pack_both", mutates_args=())
def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(values, metadata, values_t, metadata_t) of w * mask and of its transpose, from one read of w.

    The transpose is of the format `Format.transposed`.
    """
    return providers.run("pack_both", w, mask, dtype, format)


@pack_both.register_fake
def _(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    m, k = w.shape
    layout = FORMATS[format]
    return *layout.empty(m, k, dtype, w.device), *FORMATS[layout.transposed].empty(k, m, dtype, w.device)


@custom_op("s24::pack_weight_", mutates_args=("patterns", "values", "metadata", "values_t", "metadata_t"))
def pack_weight_(
    weights: Sequence[Tensor],
    patterns: Sequence[Tensor],
    values: Tensor,
    metadata: Tensor,
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    scale: Tensor | None,
    select: str,
    search: bool,
    format: str,
    weight_layout: str,
) -> None:
    """Packs stacked weights into static buffers, in place; version counters move. See its reference for the rest."""
    providers.run(
        "pack_weight_",
        weights,
        patterns,
        values,
        metadata,
        values_t,
        metadata_t,
        scale,
        select,
        search,
        format,
        weight_layout,
    )


shorten(torch.ops.s24.pack_weight_.default, lambda *args: providers.run("pack_weight_", *args), mutated=(1, 2, 3, 4, 5))
