"""One printer for graphs on their way through the passes: logs at DEBUG, and golden tests.

    inputs  fc1_weight f32[64, 32]   x f32[2, 8, 32]
    h: f32[2, 8, 64] = s24.linear(x, [fc1_weight], s24_0_values, ...)
    return h

Names are Dynamo's without their mangling; every line says dtype and shape, "?" where a node has no fake value.
"""

from __future__ import annotations

import re

import torch
from torch import fx

from s24compile.graphs.printing import argument_text, arguments_text, dtype_text
from s24compile.passes.spelling import raw_name


def format_graph(gm: fx.GraphModule, name: str = "graph") -> str:
    """The graph as text, the bodies of its higher-order ops after it."""
    names = _names(gm.graph)
    lines = [f"{name}:"]
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            lines.append(f"    input {names[node]}: {_kind(node)}")
        elif node.op == "output":
            lines.append(f"    return {argument_text(node.args[0], names)}")
        elif node.op != "get_attr":
            lines.append(f"    {names[node]}: {_kind(node)} = {_target(node)}({arguments_text(node, names)})")
    bodies = [node.target for node in gm.graph.find_nodes(op="get_attr")]
    for body in dict.fromkeys(str(target) for target in bodies):
        inner = getattr(gm, body, None)
        if isinstance(inner, fx.GraphModule):
            lines.append(format_graph(inner, body))
    return "\n".join(lines)


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    """Short names: those of inputs without Dynamo's mangling, unless that is another node's name."""
    taken = {node.name for node in graph.nodes}
    names = {}
    for node in graph.nodes:
        name = node.name
        if node.op == "get_attr":
            name = str(node.target)
        elif node.op == "placeholder":
            short = re.sub(r"^l_(self_|fn_|args_0_)?", "", name)
            short = re.sub(r"(modules|parameters|buffers)_", "", short).strip("_")
            name = short if short and short not in taken else name
        names[node] = name
        taken.add(name)
    return names


def _target(node: fx.Node) -> str:
    name = raw_name(node)
    return f"s24.{name}" if str(node.target).startswith("s24.") else f".{name}" if node.op == "call_method" else name


def _kind(node: fx.Node) -> str:
    value = node.meta.get("example_value")
    if isinstance(value, torch.Tensor):
        return f"{dtype_text(value.dtype)}{[*value.shape]}"
    return "?" if value is None else type(value).__name__
