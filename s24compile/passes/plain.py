"""The family linear - activation - linear."""

from __future__ import annotations

from s24compile.passes.linears import Linear
from s24compile.passes.match import Match, Nodes, shared_hidden, trace, trace_activation


def match_plain(nodes: Nodes, down: Linear) -> Match | None:
    """A feed-forward layer without gate.

        h = linear(x, W1, b1)          [T, F]       h = s24.linear(x, [W1], values, metadata, ...)         [T, F]
        a = gelu(h)                    [T, F]   ->  a = s24.act(h, "gelu")                                 [T, F]
        a = dropout(a, p, training)    [T, F]       a = dropout(a, p, training)                            [T, F]
        y = linear(a, W2, b2)          [T, D]       y = s24.linear(a, [W2], values, metadata, ...)         [T, D]

    Activations: gelu, gelu_tanh, silu, relu in any spelling; relu2, quick_gelu, and a relu with another slope at
    exactly 0 (clamp, maximum) stay as they are. Dropout, casts and reshapes of the leading dims may stand between. x
    may have other users (residual, parallel attention); W1 and W2 are found by dataflow, not by names or by F = 4 D.
    Refused: a hidden node with another user, since the layer is one unit whose hidden activation lowering may never
    write out; anything else between the linears (see `lookalikes`).
    """
    scope = nodes.scope
    act, after = trace_activation(nodes, down.x)
    if act is None:
        return None
    start, before = trace(scope, act.h)
    up = nodes.at(start)
    if up is None or up is down:
        return None
    hidden = [*after, *act.nodes, *before, start]
    match = Match("plain", act.name, scope, [up, down], hidden, activation=act)
    match.refusal = up.unsupported or down.unsupported or shared_hidden(hidden, {*hidden, down.node})
    return match
