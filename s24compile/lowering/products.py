"""A 2:4 GEMM of a graph, of operands of 16 or of eight bits, taken apart: what fusions look at and make anew.

    s24.mm(A..., b, bias, layout, dtype)    s24.scaled_mm(A..., descale_a, b, descale_b, bias, layout, dtype, exact)

`A...` are values, metadata, rows, cols, format. The ops that fuse something with the second are called as those that
fuse it with the first, with what only they take at the end, and return an amax beside: `kernels/ops/scaled.py`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx

from s24compile.lowering.build import Builder, value_of
from s24compile.lowering.views import chain_from, is_view
from s24compile.torch_internals.operators import OpOverload

s24 = torch.ops.s24


@dataclasses.dataclass(frozen=True)
class Product:
    """The arguments of one GEMM."""

    operands: tuple[Any, ...]
    """A and b, with their descales."""
    bias: Any
    layout: str
    dtype: torch.dtype
    exact: tuple[bool, ...]
    """What eight-bit products take last; () of 16-bit ones."""

    @classmethod
    def of(cls, node: fx.Node) -> Product:
        """Of a node that calls one of the two ops."""
        arguments, exact = (node.args[:-1], node.args[-1:]) if node.target is s24.scaled_mm.default else (node.args, ())
        *operands, bias, layout, dtype = arguments
        return cls(tuple(operands), bias, layout, dtype, exact)  # type: ignore[arg-type]

    @property
    def eight_bit(self) -> bool:
        """Whether the operands are eight bits wide."""
        return bool(self.exact)

    def op(self, name: str) -> OpOverload:
        """The op of a name without the prefix of eight-bit products: "mm_act"."""
        found: OpOverload = getattr(s24, f"scaled_{name}" if self.eight_bit else name).default
        return found

    def in_compute_dtype(self) -> bool:
        """Whether the result has the dtype of b, as that of a GEMM of 16-bit operands does unless a cast went in."""
        return self.eight_bit or self.dtype == value_of(self.operands[-1]).dtype

    def arguments(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """Of the same GEMM with another result."""
        return (*self.operands, self.bias, self.layout, dtype, *self.exact)


def product_chain(node: fx.Node) -> list[fx.Node] | None:
    """[GEMM, view, ..., node]: `views.chain_from` a GEMM of either width."""
    return chain_from(node, s24.mm.default) or chain_from(node, s24.scaled_mm.default)


def give_amax(tensor: fx.Node, amax: fx.Node) -> None:
    """Lets `amax`, which a GEMM's epilogue has found, stand for each `s24.amax` of `tensor` or of a view of it."""
    for user in list(tensor.users):
        if is_view(user):
            give_amax(user, amax)
        elif user.target is s24.amax.default:
            Builder(user).replace_with(amax)
