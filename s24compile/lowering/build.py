"""Adding nodes to a graph after AOTAutograd: every new node carries its fake value and says where it came from."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from s24compile.graphs.fake_mode import fake_mode_of
from s24compile.torch_internals.graphs import pytree
from s24compile.torch_internals.operators import base_name


def value_of(arg: Any) -> Any:
    """The fake value of a node; anything else is its own value. Works inside lists and tuples."""
    return pytree.tree_map_only(fx.Node, lambda node: node.meta["val"], arg)


class Builder:
    """Inserts calls before a node, in its place, with its provenance."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.graph = node.graph

    def call(self, op: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """`op(*args, **kwargs)` as a new node; its fake value is what the op's fake kernel says."""
        mode = fake_mode_of(self.graph)
        assert mode is not None, "a graph without fake tensors cannot hold s24 ops"
        with self.graph.inserting_before(self.node):
            made = self.graph.call_function(op, args, kwargs)
        with mode:
            made.meta["val"] = op(*value_of(args), **value_of(kwargs))
        for key in ("stack_trace", "nn_module_stack", "seq_nr", "from_node", "custom"):
            if key in self.node.meta:
                made.meta[key] = self.node.meta[key]
        return made

    def size(self, x: fx.Node, dim: int) -> fx.Node | int:
        """A dim as a number where it is one, else as a node."""
        size: int | torch.SymInt = x.meta["val"].shape[dim]
        return size if isinstance(size, int) else self.call(torch.ops.aten.sym_size.int, x, dim)

    def item(self, several: fx.Node, index: int) -> fx.Node:
        """One result of an op that has several."""
        return self.call(operator.getitem, several, index)

    def replace_with(self, other: fx.Node) -> None:
        """Lets `other` stand for the node, and erases it."""
        self.node.replace_all_uses_with(other)
        self.graph.erase_node(self.node)


def s24_calls(graph: fx.Graph) -> list[fx.Node]:
    """All calls of registered s24 ops, in order."""
    return [n for n in graph.nodes if n.op == "call_function" and getattr(n.target, "namespace", "") == "s24"]


def op_name(node: fx.Node) -> str:
    """The op's name without namespace: "mm" of `torch.ops.s24.mm.default`."""
    return base_name(node.target)
