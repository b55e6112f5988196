"""What the cost of a feed-forward layer depends on: the word that `passes` and `lowering.cost` share. A leaf."""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer as numbers, so that costs know nothing of graphs. A lone linear is `width` in and `hidden` out."""

    width: int
    """Model width D: input features of the first linear."""
    hidden: int
    """Hidden width F: input features of the last linear."""
    gated: bool
    tokens: int | None
    """Tokens T of the example input, None where they are symbolic without a hint."""
    dtype: torch.dtype
    """Of the matmuls, not of the master weights."""
