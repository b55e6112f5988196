"""One name for each way to write what layers are joined by: `torch.mul`, `operator.mul`, `.mul`, `imul` are all "mul".

`spell(node)` returns the op with its arguments bound to the signature below, so that positional, keyword and
method forms look alike. Unknown targets and unknown keyword arguments (`out=`) spell to None: not recognised.
"""

from __future__ import annotations

import builtins
import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from s24compile.torch_internals.operators import hidden_name

REQUIRED = object()
ALIASING = frozenset({
    "chunk", "split", "tensor_split", "unbind", "getitem", "narrow", "view", "reshape", "unflatten", "flatten",
    "select", "transpose", "t", "permute", "squeeze", "unsqueeze", "contiguous", "dropout", "to",
})  # fmt: skip
"""Ops whose result may be a view of, or be, their first argument."""
SPLITS = frozenset({"chunk", "split", "tensor_split", "unbind"})
"""Ops with several views of one tensor as results, which don't overlap."""
CASTS = frozenset({"to", "float", "half", "bfloat16", "double"})
SLICING = ALIASING - {"dropout", "to", "contiguous"}
"""Ops on the way from a fused projection to one of its halves."""


@dataclasses.dataclass(frozen=True)
class Op:
    """A recognised call. `args` follow the signature of `name`, defaults filled in."""

    name: str
    args: tuple[Any, ...]
    """Nodes, numbers, names: whatever FX holds."""
    inplace: bool = False
    """The call writes its result into its first argument."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """Parameter names with defaults (`REQUIRED`: none), in positional order."""

    parameters: tuple[tuple[str, object], ...]
    variadic: bool = False
    """Trailing positional arguments may be given one by one (`.view(2, 3)`) or as one sequence (`.view((2, 3))`)."""


def _signature(*parameters: str, variadic: bool = False, **defaults: object) -> Signature:
    required = tuple((name, REQUIRED) for name in parameters)
    return Signature(required + tuple(defaults.items()), variadic)


_UNARY = _signature("input")
_BINARY = _signature("input", "other")
SIGNATURES: dict[str, Signature] = {
    "linear": _signature("input", "weight", bias=None),
    "addmm": _signature("input", "mat1", "mat2", beta=1, alpha=1),
    "matmul": _BINARY,
    "mul": _BINARY,
    "add": _signature("input", "other", alpha=1),
    "div": _signature("input", "other", rounding_mode=None),
    "dropout": _signature("input", p=0.5, training=True, inplace=False),
    "getattr": _signature("input", "name"),
    "getitem": _signature("input", "index"),
    "transpose": _signature("input", "dim0", "dim1"),
    "permute": _signature("input", variadic=True),
    "view": _signature("input", variadic=True),
    "reshape": _signature("input", variadic=True),
    "to": _signature("input", variadic=True),
    **dict.fromkeys(("t", "contiguous", "float", "half", "bfloat16", "double"), _UNARY),
}

_FUNCTIONS: dict[str, tuple[Callable[..., object], ...]] = {
    "linear": (F.linear,),
    "addmm": (torch.addmm,),
    "matmul": (operator.matmul, torch.matmul, torch.mm),
    "mul": (operator.mul, torch.mul, torch.multiply, operator.imul),
    "add": (operator.add, torch.add, operator.iadd),
    "div": (operator.truediv, torch.div, torch.divide, torch.true_divide),
    "dropout": (F.dropout, torch.dropout),
    "getattr": (builtins.getattr,),
    "getitem": (operator.getitem,),
    "t": (torch.t,),
    "transpose": (torch.transpose, torch.swapaxes, torch.swapdims),
    "permute": (torch.permute,),
    "reshape": (torch.reshape,),
}
_METHODS: dict[str, tuple[str, ...]] = {
    "addmm": ("addmm",),
    "matmul": ("matmul", "mm", "__matmul__"),
    "mul": ("mul", "mul_", "multiply"),
    "add": ("add", "add_"),
    "div": ("div", "div_", "true_divide"),
    "t": ("t",),
    "transpose": ("transpose", "swapaxes", "swapdims"),
    "permute": ("permute",),
    "view": ("view",),
    "reshape": ("reshape",),
    "to": ("to", "type"),
    "contiguous": ("contiguous",),
    "float": ("float",),
    "half": ("half",),
    "bfloat16": ("bfloat16",),
    "double": ("double",),
}
_BY_FUNCTION = {function: name for name, functions in _FUNCTIONS.items() for function in functions}
_BY_METHOD = {method: name for name, methods in _METHODS.items() for method in methods}
_INPLACE_FUNCTIONS = frozenset({operator.imul, operator.iadd})
_ALIASES = {"axis": "dim", "self": "input", "x": "input"}


def known_name(node: object) -> str | None:
    """The canonical op name of a node, without looking at its arguments."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "call_function":
        try:
            return _BY_FUNCTION.get(node.target)  # type: ignore[arg-type]
        except TypeError:  # an unhashable callable
            return None
    return _BY_METHOD.get(str(node.target)) if node.op == "call_method" else None


def raw_name(node: object) -> str:
    """A readable name for any node: "layer_norm", "leaky_relu", "einsum", "chunk"."""
    if not isinstance(node, fx.Node):
        return type(node).__name__
    if node.op == "call_function":
        target = node.target
        name = getattr(target, "__name__", None) or hidden_name(target) or str(target)
        return str(name).split("::")[-1].split(".")[0]
    return str(node.target)


def spell(node: object) -> Op | None:
    """The op of a node with bound arguments, or None if it is not one of `SIGNATURES` in a known form."""
    name = known_name(node)
    if name is None:
        return None
    assert isinstance(node, fx.Node)
    signature = SIGNATURES[name]
    bound = _bind(signature, node)
    if bound is None or (name == "add" and bound[2] != 1):
        return None
    inplace = node.target in _INPLACE_FUNCTIONS or (node.op == "call_method" and str(node.target).endswith("_"))
    if name == "dropout":
        inplace = inplace or bool(bound[-1])
    return Op(name, bound, inplace)


def _bind(signature: Signature, node: fx.Node) -> tuple[Any, ...] | None:
    given = {_ALIASES.get(name, name): value for name, value in node.kwargs.items()}
    if signature.variadic:
        rest = node.args[1:]
        if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
            rest = tuple(rest[0])
        # `.to(dtype=...)` and `.reshape(shape=...)` put the rest in keywords; flags such as copy= are not ours to drop.
        extra = tuple(given.pop(name) for name in ("dtype", "shape") if name in given)
        if len(extra) == 1 and isinstance(extra[0], (tuple, list)):
            extra = tuple(extra[0])
        return None if given or not node.args else (node.args[0], *rest, *extra)
    bound: list[Any] = list(node.args)
    if len(bound) > len(signature.parameters):
        return None
    for name, default in signature.parameters[len(bound) :]:
        value = given.pop(name, default)
        if value is REQUIRED:
            return None
        bound.append(value)
    return None if given else tuple(bound)


def general_name(node: fx.Node) -> str:
    """The canonical name of a recognised op, else its readable name."""
    return known_name(node) or raw_name(node)
