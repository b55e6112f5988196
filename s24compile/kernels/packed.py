"""`Packed24`: a 2:4 matrix as its kept values and their positions, with what is needed to read them. A leaf."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Packed24(NamedTuple):
    """A dense [m, k] matrix with two of each four neighbours of a row kept.

    A NamedTuple, because Dynamo, FakeTensorMode and pytree all take it apart by themselves. See `format.py` and
    `metadata.py` for the bits. `values` is [m, k4/2] with k4 = k rounded up to 4; where k is no multiple of 4 the rest
    is zeros.
    """

    values: Tensor
    metadata: Tensor
    shape: tuple[int, int]
    """(m, k) of the dense matrix."""
    dtype: torch.dtype
    format: str
    """Name of the 2:4 format, a key of `format.FORMATS`."""

    @classmethod
    def of(cls, values: Tensor, metadata: Tensor, rows: int, cols: int, format: str) -> Packed24:
        """From the arguments that stand for it in the schema of an op (`signature.py`)."""
        # Not cls(...), which takes half as long again: this is on the way to every launch of a GEMM.
        return tuple.__new__(cls, (values, metadata, (rows, cols), values.dtype, format))

    def flat(self) -> tuple[Any, ...]:
        """The arguments that stand for it in the schema of an op: the inverse of `of`."""
        return self.values, self.metadata, *self.shape, self.format


class ScaledPair(NamedTuple):
    """The operands of an eight-bit product: A packed and B dense, each with what its values are multiplied by."""

    a: Packed24
    descale_a: Tensor
    """fp32 [1], as `descale_b`: `scaling.py`."""
    b: Tensor
    descale_b: Tensor

    @classmethod
    def of(
        cls,
        values: Tensor,
        metadata: Tensor,
        rows: int,
        cols: int,
        format: str,
        descale_a: Tensor,
        b: Tensor,
        descale_b: Tensor,
    ) -> ScaledPair:
        """From the arguments that stand for them in the schema of an op (`signature.py`)."""
        return cls(Packed24.of(values, metadata, rows, cols, format), descale_a, b, descale_b)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(m, n, k) of the product A [m, k] B [k, n]."""
        return self.a.shape[0], self.b.shape[1], self.a.shape[1]
