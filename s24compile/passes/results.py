"""Further results of a graph, handed up out of the bodies that compute them.

body:  output (y,)                             ->   output (y, counts)
top:   %out = hop(body, x, W)                  ->   %out = hop(body, x, W); %counts = getitem(%out, 1)
       output (z,)                                  output (z, counts)
"""

from __future__ import annotations

import operator

from torch import fx

from s24compile.passes.scope import Scope


def hand_up(scope: Scope, node: fx.Node) -> list[fx.Node | None]:
    """The node as the top-level graph sees it, once for each way into its scope, in the order of `scope.origins`.

    None where a body has a single result instead of a tuple of them, and so no room for another.
    """
    if not scope.calls:
        return [node]
    output = scope.graph.output_node()
    results = output.args[0]
    if not isinstance(results, (tuple, list)):
        return [found for parent, call in scope.calls for found in [None] * len(hand_up(parent, call))]
    place = len(results)
    output.args = ((*results, node),)
    found: list[fx.Node | None] = []
    for parent, call in scope.calls:
        call.meta["example_value"] = (*call.meta["example_value"], node.meta["example_value"])
        with parent.graph.inserting_after(call):
            item = parent.graph.call_function(operator.getitem, (call, place))
        item.meta["example_value"] = node.meta["example_value"]
        item.meta["s24"] = dict(node.meta["s24"])
        found += hand_up(parent, item)
    return found


def add_results(graph: fx.Graph, nodes: list[fx.Node]) -> None:
    """Appends nodes to what the top-level graph returns."""
    output = graph.output_node()
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    output.args = ((*results, *nodes),)
