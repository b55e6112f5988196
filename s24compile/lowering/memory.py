"""What the backward keeps: how many bytes, and `Config.memory="save"`, which recomputes the hidden activation.

Legend: T tokens, F hidden width.

A layer's backward needs Z (before the activation) and H (after it, the operand of the second weight gradient). H is
one pointwise pass over Z, so "save" keeps Z alone: T F elements less per layer, for one more read of Z and write of H.
"""

from __future__ import annotations

from torch import Tensor, fx
from torch.utils.checkpoint import CheckpointPolicy

from s24compile.graphs.recomputed import RECOMPUTED
from s24compile.lowering.build import op_name, s24_calls
from s24compile.lowering.views import base_of
from s24compile.torch_internals.graphs import forward_metadata, hint_of


def recompute_activations(graph: fx.Graph) -> int:
    """Marks a joint graph, before it is partitioned, so that no activation is saved. Returns how many.

    Left to the user: nodes that activation checkpointing has marked already.
    """
    count = 0
    for node in s24_calls(graph):
        if op_name(node) in RECOMPUTED and "recompute" not in node.meta:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
            node.meta.setdefault("ac_graph_id", 0)
            count += 1
    return count


def saved_bytes(graph: fx.Graph) -> dict[str, int]:
    """Bytes that a forward graph, not yet lowered, saves of its 2:4 layers; empty for any other graph.

    A backward graph may hold 2:4 linears too, those that checkpointing computes again.

    Under "Z" results of 2:4 linears, under "H" those of activations, under "P" 2:4 hidden states, under "X" what else
    such linears and layers read. Packed weights are not counted: they are there anyway. Must be called while
    AOTAutograd compiles the graph.
    """
    metadata = forward_metadata()
    linears = [node for node in s24_calls(graph) if op_name(node) in ("linear", "scaled_linear")]
    layers = [node for node in s24_calls(graph) if op_name(node) == "activation_layer"]
    if metadata is None or metadata.num_symints_saved_for_bw is None or not linears + layers or is_backward(graph):
        return {}
    roles: dict[fx.Node, str] = {base_of(reader.args[0]): "X" for reader in linears + layers}
    roles |= {item: "P" for layer in layers for item in layer.users}
    roles |= dict.fromkeys(linears, "Z")
    roles |= {node: "H" for node in s24_calls(graph) if op_name(node) in RECOMPUTED}
    for linear in [node for node in linears if op_name(node) == "scaled_linear"]:
        # What it multiplies by again, x^T in eight bits, is a result of its own.
        for user in linear.users:
            if user.args[1] in (0, 1):
                roles[user] = roles[base_of(linear.args[0])] if user.args[1] else "Z"
    (output,) = graph.find_nodes(op="output")
    sources = dict.fromkeys(base_of(node) for node in output.args[0][metadata.tensors_saved_for_backwards_slice])
    found = dict.fromkeys(("Z", "H", "P", "X"), 0)
    for source in sources:
        if source in roles:
            found[roles[source]] += _nbytes(source.meta["val"])
    return {name: count for name, count in found.items() if count}


def is_backward(graph: fx.Graph) -> bool:
    """Whether it is the backward graph of a pair: as torch's partitioner tells them apart, only that takes tangents."""
    return any("tangents" in str(node.target) for node in graph.find_nodes(op="placeholder"))


def _nbytes(value: Tensor) -> int:
    """The size of the example's tensor, without a guard on symbols."""
    count = value.dtype.itemsize
    for size in value.shape:
        count *= hint_of(size) or 0
    return count
