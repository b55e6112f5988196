"""What the ops that pack weights are given: the weights of an operand, the buffers to fill, and how. A leaf.

Legend: N, K logical rows and columns of the weights stacked in one operand; n_i rows of one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor


class Stack(NamedTuple):
    """One operand: the weights stacked in it, and its static buffers."""

    weights: Sequence[Tensor]
    """Parameters, each [n_i, K] (`Packing.weight_layout` "out_in") or [K, n_i] ("in_out"); N = sum of n_i."""
    patterns: Sequence[Tensor]
    """One uint8 tensor per weight, of logical orientation: [n_i/4, K/4] for "transposable", else [n_i, K/4]."""
    values: Tensor
    metadata: Tensor
    """Of the operand [N, K]; kept values are cast to the dtype of `values`."""
    values_t: Tensor | None
    metadata_t: Tensor | None
    """Of [K, N] in the format `Format.transposed`, or None; only "transposable" weights are 2:4 both ways."""


class Stacks(NamedTuple):
    """Many operands, as a schema can hold them."""

    weights: Sequence[Tensor]
    """Those of the first operand, then those of the second, ..."""
    counts: Sequence[int]
    """How many of the weights, and of the patterns, each operand has."""
    patterns: Sequence[Tensor]
    values: Sequence[Tensor]
    metadata: Sequence[Tensor]
    """One per operand."""
    values_t: Sequence[Tensor]
    metadata_t: Sequence[Tensor]
    """One per operand, or empty."""

    def each(self) -> Iterator[Stack]:
        """The operands one by one."""
        start = 0
        for i, count in enumerate(self.counts):
            stop = start + count
            transposed = (self.values_t[i], self.metadata_t[i]) if self.values_t else (None, None)
            weights, patterns = list(self.weights[start:stop]), list(self.patterns[start:stop])
            yield Stack(weights, patterns, self.values[i], self.metadata[i], *transposed)
            start = stop


class Packing(NamedTuple):
    """How weights are packed."""

    select: str
    """Which two of four stay: "transposable", "magnitude" or "soft_threshold" (which always searches)."""
    search: bool
    """Choose the patterns again, from the weights as they are; else the patterns given are read."""
    format: str
    """Name of the 2:4 format of the operand."""
    weight_layout: str
    """How the weights are stored: "out_in" or "in_out"."""

    def logical(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights as [n_i, K], without gradients; views."""
        return [w.detach() if self.weight_layout == "out_in" else w.detach().t() for w in weights]
