"""Puts the bodies of nested compile regions where they are called: Dynamo traces no `invoke_subgraph` a second time.

%out = invoke_subgraph(%body, "region", %x, %w)
%y = getitem(%out, 0)                                 ->   y = linear(x, w)
body: placeholder x, w -> linear(x, w) -> output (y,)
"""

from __future__ import annotations

from typing import Any

from torch import fx

from s24compile.passes.scope import FIRST_OPERAND, hop_name

REGION = "invoke_subgraph"


def inline_regions(gm: fx.GraphModule) -> int:
    """Inlines every call of a region, nested ones too, in place; returns how many."""
    count = 0
    while calls := [node for node in gm.graph.nodes if hop_name(node) == REGION]:
        for call in calls:
            _inline(gm, call)
        count += len(calls)
    if count:
        gm.graph.lint()
        gm.recompile()
    return count


def _inline(gm: fx.GraphModule, call: fx.Node) -> None:
    body_node = call.args[0]
    assert isinstance(body_node, fx.Node)
    body = getattr(gm, str(body_node.target))
    operands = call.args[FIRST_OPERAND[REGION] :]
    nodes: dict[fx.Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    with gm.graph.inserting_before(call):
        results: Any = gm.graph.graph_copy(body.graph, nodes)
    for node, copied in nodes.items():
        if node.op == "get_attr":  # a constant or a body of the region's own
            copied.target = f"{body_node.target!s}_{node.target}"
            setattr(gm, copied.target, getattr(body, str(node.target)))
    for user in list(call.users):  # each takes one result
        user.replace_all_uses_with(results[user.args[1]])
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)
