"""Fifth pass: linears of a layer trained in eight-bit floats that are not 2:4 now multiply those, too.

    y = linear(x [.., K], w, b)    ->    y = getitem(s24.scaled_dense_linear(x, w, b, dtype, "out_in"), 0)    [.., N]

They are those of `Match.narrow`: in their dense phase, or the up projections under targets="down". Without
precision="fp8" there are none.
"""

from __future__ import annotations

import operator

import torch

from s24compile.passes.emit import Emitter
from s24compile.passes.linears import Linear
from s24compile.passes.match import Match
from s24compile.passes.provenance import common_path, module_path
from s24compile.passes.rewrite import replace
from s24compile.passes.scope import fake, known_fake
from s24compile.passes.state import State


def rewrite_dense(state: State) -> int:
    """Rewrites every such linear; returns how many."""
    found = {linear.node: (match, linear) for match in state.matches for linear in match.narrow}
    for match, linear in found.values():
        _rewrite(match, linear, state)
    return len(found)


def _rewrite(match: Match, linear: Linear, state: State) -> None:
    scope, node = match.scope, linear.node
    path = common_path([module_path(scope, n.node, n.weight) for n in match.linears])
    emit = Emitter(node, state.fake_mode, match.rule, path)
    x, value, dtype = node.args[0], fake(node.args[0]), known_fake(node).dtype
    assert value is not None
    with scope.graph.inserting_before(node):
        if value.dtype != dtype:
            x = emit.method("to", x, dtype)
        inputs = x, linear.weight, node.args[2], dtype, linear.layout
        several = emit.function(torch.ops.s24.scaled_dense_linear.default, *inputs)
        y = emit.function(operator.getitem, several, 0)
    replace(node, y, state)
