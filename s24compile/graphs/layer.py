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
    first: bool = True
    """Whether the linears in front of the activation are 2:4."""
    last: bool = True
    """Whether the linear behind it is; a lone linear is both."""
    state: bool = False
    """Whether it is the hidden state that is 2:4, and no weight is."""
    dx: str = "sparse"
    """Input gradient of the 2:4 linears: "sparse", "dense" or "mvue", as in `Recipe.dx`."""
    dw: tuple[str, str] = ("mvue", "mvue")
    """Weight gradients of the first linears and of the last, where they are 2:4: "mvue" or "dense"."""
