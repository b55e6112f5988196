"""What the backward keeps: `Config.memory="save"` recomputes the hidden activation instead of saving it.

Legend: T tokens, F hidden width.

A layer's backward needs Z (before the activation) and H (after it, the operand of the second weight gradient). H is
one pointwise pass over Z, so "save" keeps Z alone: T F elements less per layer, for one more read of Z and write of H.
"""

from __future__ import annotations

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from s24compile.lowering.build import op_name, s24_calls

RECOMPUTED = frozenset({"act", "glu"})


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
