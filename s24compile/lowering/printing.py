"""One printer for lowered graphs: structured traces, documentation and golden tests.

A line reads `name: dtype[shape] = op(args)  # provider`; column-major matrices say `col`, any other layout its strides.
Nodes are numbered anew, so that goldens don't change with torch's naming.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from s24compile.graphs.printing import argument_text, arguments_text, dtype_text
from s24compile.lowering.select import PROVIDER
from s24compile.torch_internals.operators import OpOverload, schema_of


def print_graph(graph: fx.Graph) -> str:
    """The graph as lines of text; the placeholders first, the outputs last."""
    names: dict[fx.Node, str] = {}
    counter: dict[str, Iterator[int]] = {}
    lines = []
    for node in graph.nodes:
        if node.op == "output":
            lines.append("return " + argument_text(node.args[0], names))
            continue
        kind = "in" if node.op == "placeholder" else _op_name(node.target)
        number = next(counter.setdefault(kind, itertools.count()))
        names[node] = f"%{kind}{number}"
        call = "" if node.op == "placeholder" else f" = {_op_name(node.target)}({arguments_text(node, names)})"
        provider = f"  # {node.meta[PROVIDER]}" if PROVIDER in node.meta else ""
        lines.append(f"{names[node]}: {_value(node.meta.get('val'))}{call}{provider}")
    return "\n".join(lines)


def _op_name(target: Any) -> str:
    if isinstance(target, OpOverload):
        namespace, name = schema_of(target).name.split("::")
        return f"{namespace}.{name}" if namespace.startswith("s24") else name
    return getattr(target, "__name__", str(target))


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_value(v) for v in value) + ")"
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    shape = ", ".join(str(size) for size in value.shape)
    is_column_major = value.dim() == 2 and value.t().is_contiguous()
    strides = "" if value.is_contiguous() else " col" if is_column_major else f" strides {tuple(value.stride())}"
    return f"{dtype_text(value.dtype)}[{shape}]{strides}"
