"""What nodes do besides computing their results: write memory, or change the modes that later nodes run under.

A rule puts one node in the place of several, which ran one after the other. That is the same only where nothing that
they read was written in between, and where they ran under one grad mode and one autocast:

    y = linear(x, W)                      y = linear(x, W)
    x.add_(1)                             _set_grad_enabled(True)
    add(y, b)   # not linear(x, W, b)     add(y, b)               # not linear(x, W, b)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import fx

from s24compile.passes.scope import FIRST_OPERAND, hop_name, storage_of
from s24compile.passes.spelling import raw_name
from s24compile.torch_internals.graphs import MODE_PREFIXES, pytree, set_grad_enabled
from s24compile.torch_internals.operators import OpOverload, OpOverloadPacket, schema_of

BODY_HOPS = frozenset({*FIRST_OPERAND, "autograd_function_apply"})
"""Higher-order ops that do what their bodies do."""
_KNOWN_HOMES = ("torch", "_operator", "builtins", "math")
_IN_PLACE = {
    "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "ilshift", "irshift", "iand", "ixor",
    "ior", "setitem", "delitem",
}  # fmt: skip
"""Of module operator, and as methods between two underscores on either side."""


def undisturbed(nodes: Collection[fx.Node]) -> bool:
    """Whether all of `nodes` could run at the moment of any one of them: nothing else between the first and the last
    writes to an operand or a result of theirs, or changes a mode."""
    storages = {s for n in nodes for at in (n, *n.all_input_nodes) for s in _storages(at)}
    effects = [written_by(node) for node in _between(nodes)]
    return all(w is not None and not any(_may_share(target, storages) for target in w) for w in effects)


def in_one_mode(nodes: Collection[fx.Node]) -> bool:
    """Whether grad mode and autocast are the same for all of `nodes`. (A view tells nothing of it: made under no_grad,
    it says requires_grad and gives its base no gradient.)"""
    return all(written_by(node) is not None for node in _between(nodes))


def grad_is_off(node: fx.Node) -> bool:
    """Whether a no_grad inside the graph holds at this node."""
    switches = node.graph.find_nodes(op="call_function", target=set_grad_enabled)
    before = [switch for switch in switches if switch < node]
    return bool(before) and not before[-1].args[0]


def writes(graph: fx.Graph) -> list[tuple[fx.Node, list[fx.Node]]]:
    """Every node that writes, with the operands that it writes to."""
    return [(node, targets) for node in graph.nodes if (targets := written_by(node))]


def is_written(node: fx.Node, by: Iterable[tuple[fx.Node, list[fx.Node]]] | None = None) -> bool:
    """Whether a later node writes to the memory of this one's result, or changes in place what kind of tensor it is.

    Args:
        by: what `writes` says of the graph, where many nodes are asked about.
    """
    storages = set(_storages(node))
    found = writes(node.graph) if by is None else by
    return any(writer > node and any(_may_share(t, storages) for t in targets) for writer, targets in found)


def _between(nodes: Collection[fx.Node]) -> Iterator[fx.Node]:
    node, last = min(nodes), max(nodes)
    while node is not last:
        node = node.next
        if node not in nodes:
            yield node


def written_by(node: fx.Node) -> list[fx.Node] | None:
    """The operands that a node writes to; None for a node that changes modes, or may do anything."""
    if node.op in ("placeholder", "get_attr", "output"):
        return []
    if node.op == "call_method":
        return _tensors(node.args[:1]) if _is_in_place(str(node.target)) else []
    if node.op != "call_function":
        return None
    if hop_name(node) is not None:
        return [] if hop_name(node) in BODY_HOPS and all(map(_only_computes, _bodies(node))) else None
    return _written_by_function(node)


def _written_by_function(node: fx.Node) -> list[fx.Node] | None:
    target: Any = node.target
    if isinstance(target, OpOverload):
        return _tensors((node.args, tuple(node.kwargs.values()))) if schema_of(target).is_mutable else []
    if isinstance(target, OpOverloadPacket):
        overloads = [schema_of(getattr(target, name)) for name in target.overloads()]
        mutable = any(a.is_write and not a.kwarg_only for schema in overloads for a in schema.arguments)
        return _tensors((node.args if mutable else (), node.kwargs.get("out")))
    name, home = raw_name(node), getattr(target, "__module__", None) or "torch"
    if name.startswith(MODE_PREFIXES) or home.split(".")[0] not in _KNOWN_HOMES:
        return None
    first = node.args[:1] or node.kwargs.get("input")
    return _tensors((first if _is_in_place(name) or _asks_in_place(node) else (), node.kwargs.get("out")))


def _is_in_place(name: str) -> bool:
    if name in ("and_", "or_", "not_", "is_"):  # of module operator
        return False
    return name.strip("_") in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _asks_in_place(node: fx.Node) -> bool:
    if "inplace" in node.kwargs:
        return bool(node.kwargs["inplace"])
    position = place_of_inplace(node.target)  # type: ignore[arg-type]
    return position is not None and position < len(node.args) and bool(node.args[position])


@functools.cache
def place_of_inplace(function: Callable[..., Any]) -> int | None:
    """At which position a function takes its flag `inplace`; None where it has none."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # built-in functions tell no signature, and have no such flag
        return None
    return names.index("inplace") if "inplace" in names else None


def _bodies(node: fx.Node) -> Iterator[fx.GraphModule]:
    owner = node.graph.owning_module
    for operand in node.all_input_nodes:
        body = getattr(owner, str(operand.target), None) if operand.op == "get_attr" else None
        if isinstance(body, fx.GraphModule):
            yield body


def _only_computes(body: fx.GraphModule) -> bool:
    return all(written_by(node) == [] for node in body.graph.nodes)


def _tensors(arguments: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found


def _storages(node: fx.Node) -> Iterator[int]:
    for value in pytree.tree_leaves(node.meta.get("example_value")):
        if isinstance(value, torch.Tensor):
            yield storage_of(value)


def _may_share(node: fx.Node, storages: Iterable[int]) -> bool:
    found = set(_storages(node))
    return not found or not found.isdisjoint(storages)
