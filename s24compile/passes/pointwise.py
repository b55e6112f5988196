"""Nodes that compute number by number: elementwise functions of torch's own, and what follows from being one."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from s24compile.passes.effects import written_by
from s24compile.passes.scope import fake, hop_name, storage_of
from s24compile.passes.spelling import ALIASING, CASTS, general_name, known_name, raw_name
from s24compile.torch_internals.graphs import SYM_SQRT
from s24compile.torch_internals.operators import OpOverload, OpOverloadPacket

_UNTAGGED = frozenset(
    {"special_expit", "special_erf", "special_erfc", "special_ndtr", "log_sigmoid", "hardswish", "leaky_relu"}
)
"""Pointwise ops that torch does not say it of, since it decomposes them first; of leaky_relu it does from 2.13 on."""
_TORCHS_HOMES = frozenset({"aten", "torch", "_operator", "builtins", "math"})
_KNOWN_HOMES = _TORCHS_HOMES | {"prims", "prim", "s24", "einops"}
"""einops only views and copies."""
_FRESH = frozenset({"linear", "addmm", "matmul", "zeros_like", "ones_like", "full_like", "zeros", "ones", "tensor"})
"""Further ops whose result is a new tensor."""
_PURE = (ALIASING - {"dropout"}) | {
    "getattr", "item", SYM_SQRT, "Size", "sym_size", "size", "autograd_function_apply",
}  # fmt: skip
"""Further ops without side effects. Dropout draws: erasing one would shift the random numbers of the others."""


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node is an elementwise function of torch's own, of tensors and numbers; not in place, not random."""
    if node.op not in ("call_function", "call_method") or hop_name(node) is not None or fake(node) is None:
        return False
    if is_cast(node):
        return True
    given = (*node.args, *node.kwargs.values())
    plain = all(isinstance(value, (fx.Node, int, float, str, type(None))) for value in given)
    return plain and is_pointwise_op(general_name(node)) and _is_torchs(node.target) and written_by(node) == []


@functools.cache
def is_pointwise_op(name: str) -> bool:
    """Whether torch says of its op of that name that it is pointwise, and not that it is random."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = packet.overloads() if isinstance(packet, OpOverloadPacket) else ()
    tags = {tag for overload in overloads for tag in getattr(packet, overload).tags}
    return name in _UNTAGGED or (torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags)


def is_opaque(node: fx.Node) -> bool:
    """Whether a node calls something that is neither torch's nor ours: what it computes, nobody can tell."""
    return node.op == "call_function" and hop_name(node) is None and _home(node.target) not in _KNOWN_HOMES


def _is_torchs(target: Any) -> bool:
    return _home(target) in _TORCHS_HOMES


def _home(target: Any) -> str:
    """The namespace of an op, the library of a function: "aten", "torch", "user_library"."""
    if isinstance(target, OpOverload):
        return target.namespace
    if isinstance(target, OpOverloadPacket):
        return str(target).partition(".")[0]
    home = None if isinstance(target, str) else getattr(target, "__module__", None)
    return str(home or "torch").partition(".")[0]


def is_cast(node: fx.Node) -> bool:
    """Whether a node changes the dtype and nothing else, to one of floats."""
    if known_name(node) not in CASTS and raw_name(node) != "type_as":
        return False
    value, before = fake(node), fake(subject(node))
    same_place = value is not None and before is not None and value.device == before.device
    return same_place and value is not None and value.is_floating_point()


def subject(node: fx.Node) -> fx.Node | None:
    """The tensor that a node is written as a method of, or its first operand."""
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None


def is_fresh(node: fx.Node) -> bool:
    """Whether the result is a new tensor that nothing else aliases."""
    value = fake(node)
    if value is None or not (is_pointwise(node) or (known_name(node) or raw_name(node)) in _FRESH):
        return False
    storage = storage_of(value)
    operands = [fake(operand) for operand in node.all_input_nodes]
    return written_by(node) == [] and all(v is None or storage_of(v) != storage for v in operands)


def is_pure(node: fx.Node) -> bool:
    """Whether the node may be erased once nobody uses it: known to have no effect but its result."""
    return node.op == "get_attr" or general_name(node) in _PURE or is_fresh(node)
