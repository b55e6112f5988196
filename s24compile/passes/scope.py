"""The graphs of one compilation: the top-level one and the bodies of higher-order ops that the passes enter.

Activation checkpointing and nested compile regions hide whole layers in bodies:

    top:   %body = get_attr[wrap_body_0]
           %out = tag_activation_checkpoint(%body, %x, %w, %b)          # or invoke_subgraph(%body, name, ...)
    body:  placeholder x, w, b -> ... -> output (y,)

Body placeholders have no source and no `tensor_dict`; they are known only through the operands of the call.
A body of invoke_subgraph may have several calls: what is added to one call is added to all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.torch_internals.graphs import copy_signature, has_source, set_source, source_of
from s24compile.torch_internals.operators import HigherOrderOperator
from s24compile.torch_internals.tensors import get_unwrapped, is_functorch_wrapped_tensor, storage_id

FIRST_OPERAND = {"tag_activation_checkpoint": 1, "invoke_subgraph": 2, "wrap": 1}
"""Higher-order ops that run their body once, as it stands -> index of the first operand among the call's args."""


@dataclasses.dataclass(eq=False)
class Scope:
    """One graph, and the calls that run it (none for the top-level graph)."""

    module: fx.GraphModule
    calls: list[tuple[Scope, fx.Node]] = dataclasses.field(default_factory=list)
    children: dict[fx.Node, Scope] = dataclasses.field(default_factory=dict)
    """call node of this graph -> the scope it runs"""

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    def placeholders(self) -> list[fx.Node]:
        return list(self.graph.find_nodes(op="placeholder"))


def hop_name(node: fx.Node) -> str | None:
    """The name of a higher-order op's call, or None for any other node."""
    if node.op == "call_function" and isinstance(node.target, HigherOrderOperator):
        return node.target.name()
    return None


def copy_scopes(gm: fx.GraphModule) -> tuple[fx.GraphModule, list[Scope]]:
    """Copies a Dynamo graph with the bodies that the passes may edit; tensors and other bodies are shared.

    Dynamo reads its own placeholders after the backend returns, so the original is never touched. The copied
    placeholders keep `_dynamo_source`, which AOTAutograd asks for.
    """
    copies: dict[fx.GraphModule, Scope] = {}
    order: list[Scope] = []

    def copy(module: fx.GraphModule) -> Scope:
        graph = fx.Graph()
        nodes: dict[fx.Node, fx.Node] = {}
        result: Any = graph.graph_copy(module.graph, nodes, return_output_node=True)
        if result is not None:
            value, old_output = result
            output = graph.output(value)
            output.meta = dict(old_output.meta)
        for old, new in nodes.items():
            if has_source(old):
                set_source(new, source_of(old))
        copy_signature(module.graph, graph)
        copied = fx.GraphModule(module, graph)
        copied.meta = dict(module.meta)
        for name, value in module.__dict__.items():
            copied.__dict__.setdefault(name, value)  # compile_subgraph_reason, _param_name_to_source, ...
        scope = copies[module] = Scope(copied)
        order.append(scope)
        for node in list(graph.nodes):
            body_node = node.args[0] if hop_name(node) in FIRST_OPERAND and node.args else None
            if not isinstance(body_node, fx.Node) or body_node.op != "get_attr":
                continue
            body = getattr(module, str(body_node.target), None)
            if not isinstance(body, fx.GraphModule):
                continue
            child = copies[body] if body in copies else copy(body)
            setattr(copied, str(body_node.target), child.module)
            child.calls.append((scope, node))
            scope.children[node] = child
        return scope

    top = copy(gm)
    return top.module, order


def operand_index(call: fx.Node, placeholder: fx.Node, child: Scope) -> int:
    """Index in `call.args` of the operand that arrives at a body's placeholder."""
    return FIRST_OPERAND[str(hop_name(call))] + child.placeholders().index(placeholder)


def origins(scope: Scope, node: fx.Node) -> list[fx.Node]:
    """The nodes of the top-level graph that a node stands for: one per chain of calls, in order.

    A node that is no placeholder, inside a body, stands for itself.
    """
    if not scope.calls or node.op != "placeholder":
        return [node]
    found: list[fx.Node] = []
    for parent, call in scope.calls:
        operand = call.args[operand_index(call, node, scope)]
        if isinstance(operand, fx.Node):
            found += origins(parent, operand)
    return found


def uses(scope: Scope, node: fx.Node) -> Iterator[tuple[Scope, fx.Node, fx.Node]]:
    """Every user of a node, seen through the higher-order ops that only pass it on to a body.

    Yields:
        The graph of the user, the user, and what it uses: the node, or the placeholder that stands for it there.
    """
    for user in node.users:
        child = scope.children.get(user)
        if child is None:
            yield scope, user, node
            continue
        first = FIRST_OPERAND[str(hop_name(user))]
        placeholders = child.placeholders()
        for index, operand in enumerate(user.args[first:]):
            if operand is node and index < len(placeholders):
                yield from uses(child, placeholders[index])


def fake(node: object) -> torch.Tensor | None:
    """The fake tensor of a node, or None where it has none (sizes, tuples, modules)."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def known_fake(node: fx.Node | None) -> torch.Tensor:
    """The fake tensor of a node that is known to be a tensor."""
    value = fake(node)
    assert value is not None, f"{node} has no fake value"
    return value


def same_shape(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two fake tensors have one shape, whatever their symbolic sizes turn out to be; adds no guard."""
    return a.dim() == b.dim() and all(statically_known_true(x == y) for x, y in zip(a.shape, b.shape, strict=True))


def same_place(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two fake tensors of one storage hold the same numbers at the same indices of it; adds no guard."""
    strides = zip(a.shape, a.stride(), b.stride(), strict=False)
    aligned = all(statically_known_true(size == 1) or statically_known_true(x == y) for size, x, y in strides)
    return same_shape(a, b) and aligned and statically_known_true(a.storage_offset() == b.storage_offset())


def storage_of(value: torch.Tensor) -> int:
    """What tells the memory of one fake tensor from that of another; seen through the wrappers of torch.func."""
    while is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
    return storage_id(value)
