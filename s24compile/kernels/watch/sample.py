"""What the sample of a weight is: an element of each row and of each column.

Writes through `.data` move no version counter, no address and no optimizer; what they leave is other numbers.

Legend: R, C the sizes of a weight as it lies in memory, C contiguous.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""An integer type of each size in bytes: NaN equals itself there, and -0.0 is not 0.0."""


@functools.cache
def sample_stride(rows: int, columns: int) -> int:
    """The distance in memory between sampled elements: the largest that passes over no row and no column.

    Not above the rows, so that there are `columns` samples and more; not above the columns, so that no row is passed
    over; prime to the columns, so that `columns` samples that follow one another are in as many of them.
    """
    return next(s for s in range(min(rows, columns), 0, -1) if math.gcd(s, columns) == 1)


def memory_shape(weight: Tensor) -> tuple[int, int] | None:
    """(R, C) of a weight whose elements fill one piece of memory, row- or column-major; None for any other."""
    if weight.dim() != 2 or weight.layout != torch.strided or not weight.numel():
        return None
    rows, columns = weight.shape
    if weight.is_contiguous():
        return rows, columns
    return (columns, rows) if weight.t().is_contiguous() else None


def sample_length(weight: Tensor) -> int | None:
    """How many elements `sampled` takes; None where `memory_shape` is."""
    shape = memory_shape(weight)
    return None if shape is None else -(-weight.numel() // sample_stride(*shape))


def sampled(weight: Tensor) -> Tensor | None:
    """The sampled elements as they are now: a strided view [about max(R, C)]; None where `memory_shape` is."""
    shape = memory_shape(weight)
    if shape is None:
        return None
    stride, flat = sample_stride(*shape), weight.detach()
    return flat.as_strided((-(-flat.numel() // stride),), (stride,), flat.storage_offset())
