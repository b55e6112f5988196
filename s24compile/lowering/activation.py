"""What no GEMM took: `s24.act` and `s24.act_backward` given back to aten, for Inductor to fuse with its neighbours.

h = s24.act(z, "silu")   ->   the pointwise nodes that AOTAutograd would have decomposed `silu` into
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from s24compile.graphs.fake_mode import fake_mode_of
from s24compile.kernels.glu import reference
from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls, value_of
from s24compile.torch_internals.graphs import inductor_decompositions

_REFERENCES: dict[str, Callable[..., Tensor]] = {"act": reference.act, "act_backward": reference.act_backward}


def lower_activations(graph: fx.Graph, target: Target) -> int:
    """Spells every remaining activation in aten. Returns how many."""
    found = [node for node in s24_calls(graph) if op_name(node) in _REFERENCES]
    for node in found:
        *tensors, kind = node.args
        build = Builder(node)
        build.replace_with(_splice(build, functools.partial(_REFERENCES[op_name(node)], act=kind), tensors))
    return len(found)


def _splice(build: Builder, function: Callable[..., Tensor], args: list[Any]) -> fx.Node:
    """The nodes that `function` decomposes into, inserted on `args`; returns the last."""
    mode = fake_mode_of(build.graph)
    assert mode is not None
    with mode:
        traced = make_fx(function, decomposition_table=inductor_decompositions())(*value_of(args))
    env: dict[fx.Node, fx.Node] = dict(zip(traced.graph.find_nodes(op="placeholder"), args, strict=True))
    for node in traced.graph.nodes:
        if node.op == "output":
            return env[node.args[0]]
        if node.op == "call_function":
            copied = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = build.call(node.target, *copied[0], **copied[1])
    raise AssertionError("a traced graph ends with its output")
