"""Puts one s24 op in place of a layer whose hidden state is 2:4. T tokens, D model width, F hidden width.

    z = linear(x, W1, b1)              [T, F]      k = ne(dropout(ones([T, F]), p, True), 0)
    h = square(relu(z))                [T, F]      w1 = to(detach(W1), bf16); w2 = to(detach(W2), bf16)
    h = dropout(h, p, True)            [T, F]  ->  l = s24.activation_layer(x, W1, w1, b1, k, W2, w2, b2, "relu2", ...)
    y = linear(h, W2, b2)              [T, D]      y = getitem(l, 0)
                                                   c = getitem(l, 3), a further result of the graph: what p drops

The dropout draws in its old place what it drew before. Casts of master weights are nodes, so that AOTAutograd decides
whether a backward keeps or repeats them, as it does of a dense layer's.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.graphs.marks import mark_of
from s24compile.passes.activations import Activation, hold_constants
from s24compile.passes.emit import Emitter, erase_unused
from s24compile.passes.linears import Linear
from s24compile.passes.match import Match
from s24compile.passes.provenance import common_path, module_path, parameter_name
from s24compile.passes.results import hand_up
from s24compile.passes.scope import fake, known_fake
from s24compile.passes.spelling import general_name
from s24compile.passes.state import State
from s24compile.torch_internals.graphs import is_erased
from s24compile.weights.operand_request import LayerRequest


def rewrite_hidden(match: Match, state: State) -> int:
    """Rewrites one taken layer; returns how many of its matmuls are 2:4 now."""
    up, down = match.linears
    hidden, activation = match.hidden, match.activation
    assert hidden is not None
    assert activation is not None
    path = common_path([module_path(match.scope, linear.node, linear.weight) for linear in match.linears])
    whole = up in match.taken
    # Not as they were found: an earlier layer's result may have been replaced.
    x = up.node.args[0] if whole else _operand(activation)
    assert isinstance(x, fx.Node)
    hold_constants(activation)
    keep = _keep(match, x, state, path)
    emit = Emitter(down.node, state.fake_mode, match.rule, path)
    dtype, mark = known_fake(down.node).dtype, mark_of(down.node)
    options = state.options_for(mark)
    with down.node.graph.inserting_before(down.node):
        if known_fake(x).dtype != dtype:
            x = emit.method("to", x, dtype)
        first = (*_weight(up, dtype, emit), up.node.args[2] or hidden.bias) if whole else (None, None, None)
        layer = emit.function(
            torch.ops.s24.activation_layer.default,
            x,
            *first,
            keep,
            *_weight(down, dtype, emit),
            down.node.args[2],
            hidden.act,
            float(hidden.scale),
            options.format,
            up.layout,
            down.layout,
            options.dw_of(up.in_features),
            options.dw_of(down.in_features),
        )
        y = _in_shape_of(down.node, emit.function(operator.getitem, layer, 0), x, emit)
        counts = emit.function(operator.getitem, layer, 3)
    state.replaced.append((known_fake(down.node), y))
    down.node.replace_all_uses_with(y)
    erase_unused(down.node)
    for node in match.between:
        if not is_erased(node) and general_name(node) == "dropout":
            erase_unused(node)  # erasing stopped at what may draw; it does not, or draws for `keep` now
    _request(match, counts, state, mark)
    return len(match.taken)


def _operand(activation: Activation) -> fx.Node:
    """What an activation is computed from now."""
    inside = set(activation.nodes)
    operands = (operand for node in reversed(activation.nodes) for operand in node.all_input_nodes)
    return next(operand for operand in operands if operand not in inside and fake(operand) is not None)


def _keep(match: Match, x: fx.Node, state: State, path: str) -> fx.Node | None:
    """What the layer's dropout lets through: bool [..., F], drawn in the dropout's place. None: everything."""
    assert match.hidden is not None
    dropout = match.hidden.dropout
    if dropout is None:
        return None
    source = dropout.all_input_nodes[0]
    like = known_fake(source)
    emit = Emitter(dropout, state.fake_mode, match.rule, path)
    with dropout.graph.inserting_before(dropout):
        ones = emit.function(torch.ones, _sizes(source, x, emit), dtype=like.dtype, device=like.device)
        return emit.function(torch.ne, emit.function(F.dropout, ones, match.hidden.rate, True), 0)


def _sizes(node: fx.Node, like: fx.Node, emit: Emitter) -> list[Any]:
    """The sizes of a node, read from `like` where they are symbols, for the node itself goes."""
    shape, other = known_fake(node).shape, known_fake(like).shape
    found: list[Any] = []
    for place, size in enumerate(shape):
        same = not isinstance(size, int) and place < len(other) and statically_known_true(size == other[place])
        subject = like if same else node
        found.append(size if isinstance(size, int) else emit.method("size", subject, place))
    return found


def _weight(linear: Linear, dtype: torch.dtype, emit: Emitter) -> tuple[fx.Node, fx.Node]:
    """The parameter, which gets the gradient, and the numbers that are computed with."""
    weight = linear.weight
    assert weight is not None
    if known_fake(weight).dtype == dtype:
        return weight, weight
    return weight, emit.method("to", emit.method("detach", weight), dtype)


def _in_shape_of(old: fx.Node, y: fx.Node, x: fx.Node, emit: Emitter) -> fx.Node:
    """y with the leading dims of the node that it stands for; the hidden state may have been reshaped on its way."""
    have, want = known_fake(y).shape, known_fake(old).shape
    if len(have) == len(want) and all(statically_known_true(a == b) for a, b in zip(have, want, strict=True)):
        return y
    state = old.args[0]
    assert isinstance(state, fx.Node)
    return emit.method("reshape", y, *_sizes(state, x, emit)[:-1], want[-1])


def _request(match: Match, counts: fx.Node, state: State, mark: str | None) -> None:
    """Notes which parameters the layer is known by, once for each way into its scope, and hands up what it counts."""
    down, taken = match.linears[-1], [linear for linear in reversed(match.linears) if linear in match.taken]
    tops = [linear.weight_inputs for linear in taken]
    for weights, result in zip(zip(*tops, strict=True), hand_up(match.scope, counts), strict=True):
        state.layers.append(
            LayerRequest(
                weights=tuple(weight.name for weight in weights),
                names=tuple(parameter_name(weight) for weight in weights),
                weight_layout="in_out" if down.layout == "in_out" else "out_in",
                counted=result is not None,
                decorated=mark,
            )
        )
        if result is not None:
            state.results.append(result)
