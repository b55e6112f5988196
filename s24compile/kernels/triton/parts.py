"""Which part of an operand's buffers each of the weights stacked in it fills.

Legend: w [n_i, k] one of the stacked weights, in logical orientation; N their rows together; F rows of one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.triton.store import NEVER


class Buffers(NamedTuple):
    """Buffers of an operand, or of a part of it, as the kernels see them."""

    values: Tensor
    cells: Tensor
    """Metadata whose dim 0 leads from one column of cells to the next: `planes`."""

    @classmethod
    def of(cls, values: Tensor, metadata: Tensor, format: str) -> Buffers:
        """Those of a whole operand."""
        return cls(values, planes(metadata, format))


class Part(NamedTuple):
    """What one weight fills."""

    operand: Buffers
    transposed: Buffers | None
    split: int
    """The weight's first row of the second half, for a format that interleaves: triton/store.py."""


def planes(metadata: Tensor, format: str) -> Tensor:
    """Metadata beside 16-bit values, seen as columns of cells: `MetadataLayout.planes`."""
    return FORMATS[format].wide.planes(metadata)


def separable(logical: Sequence[Tensor], format: str, both_ways: bool, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether weights [n_i, k] can be packed one by one: no two of them write into one cell, or one tile's padding.

    Along the columns of W^T they meet unless all but the last have whole atoms of 64 (128 beside values of 8 bits);
    along the rows of W also, unless the format interleaves two halves.
    """
    rows = [w.shape[0] for w in logical]
    atom = 128 if both_ways and dtype.itemsize == 1 else 64
    whole = all(n % atom == 0 for n in rows[:-1])
    if not FORMATS[format].interleaved:
        return whole
    return len(rows) == 1 or (len(rows) == 2 and rows[0] == rows[1] and (whole or not both_ways))


def parts(
    logical: Sequence[Tensor],
    operand: Buffers,
    transposed: Buffers | None,
    format: str,
    dtype: torch.dtype = torch.bfloat16,
) -> list[Part]:
    """The part of each of several separable weights [n_i, k], in their order; dtype: of the values."""
    form = FORMATS[format]
    layout, layout_t = form.layout(dtype), FORMATS[form.transposed].layout(dtype)
    found, row = [], 0
    for w in logical:
        stop = row + w.shape[0]
        own, across, split = operand, None, 0
        if transposed is not None:
            values, cells = transposed
            across = Buffers(values[:, row // 2 : stop // 2], layout_t.columns_of(cells, row, stop))
        if form.interleaved:
            split = stop // 2 if len(logical) == 1 else 0 if row else NEVER
        else:
            own = Buffers(operand.values[row:stop], layout.rows_of(operand.cells, row, stop))
        found.append(Part(own, across, split))
        row = stop
    return found
