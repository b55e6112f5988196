"""Contracts of samples of weights, see watch/reference.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from s24compile.kernels.ops.contract import contract


@contract(mutates=("samples",), short=True)
def copy_samples_(weights: Sequence[Tensor], samples: Sequence[Tensor]) -> None:
    """Takes the sample of each weight, into tensors of its length and dtype."""


@contract(mutates=("found",), short=True)
def compare_samples_(weights: Sequence[Tensor], samples: Sequence[Tensor], found: Tensor, number: int) -> None:
    """Writes `number` to the places of `found` whose weight has other elements than its sample. No host sync."""
