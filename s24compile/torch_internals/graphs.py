"""FX graphs, and the fake tensors and symbols in them."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor

from s24compile.torch_internals.part import Part

__all__ = ["PARTS", "FakeTensor", "hint_of"]

PARTS = (
    Part("torch._subclasses.fake_tensor.FakeTensor", "what a compiler runs a graph with is taken for real weights"),
    Part("torch.fx.experimental.sym_node.SymNode.hint", "numbers of tokens are not known where they are symbols"),
)


def hint_of(size: int | torch.SymInt) -> int | None:
    """A size as the number that it has in the example, without a guard on it; None of a symbol that has none."""
    return size if isinstance(size, int) else size.node.hint
