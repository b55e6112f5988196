"""Which layers recipe="activation" takes: those whose hidden state is sparse by itself. T tokens, D width, F hidden.

    z = linear(x, W1, b1)          [T, F]
    h = square(relu(z)) | relu(z)  [T, F]     some 90% zeros in a trained layer; p: the two largest of four neighbours
    h = dropout(h, p, training)    [T, F]
    y = linear(h, W2, b2)          [T, D]     2:4, with p packed along F

The layer is taken as one: without its last projection there is nothing to multiply p by. The first one may stay dense
(targets="down", exclude, a weight that is no parameter); then z comes from where it came from.
"""

from __future__ import annotations

import dataclasses
import math

from torch import fx

from s24compile.kernels.activations import SPARSE
from s24compile.passes.effects import in_one_mode, undisturbed
from s24compile.passes.match import RESHAPES, Hidden, Match
from s24compile.passes.provenance import user_line
from s24compile.passes.scope import known_fake
from s24compile.passes.spelling import CASTS, general_name, spell
from s24compile.passes.state import LinearOptions

WIDTH = 16
"""What a hidden width must be a multiple of: the features that one cell of metadata describes."""

TAKES = "recipe='activation' takes layers whose activation is relu or squared relu"
NOT_SPARSE = "its hidden state is not sparse: {takes}, and this one's is {act}"
LONE = "it has no hidden state, whose zeros recipe='activation' is about"
OPAQUE = "no kernel here reads the places that {format} has packed, which the backward of recipe='activation' must"
MOVED = "between its projections something writes to memory that they read, or changes the grad mode"
EXISTS = "its hidden state is sparse by itself: recipe='activation' makes that 2:4, and prunes no weight"
"""For layers of another recipe."""


def hidden_of(match: Match, options: LinearOptions) -> Hidden | str:
    """What recipe="activation" makes of a layer, or the sentence why it stays dense."""
    if match.rule == "linear":
        return LONE
    act = match.activation
    if act is None or act.name not in SPARSE:
        name = act.name if act is not None else f"a gate by {match.gate.act.name}" if match.gate else match.family
        return NOT_SPARSE.format(takes=TAKES, act=name)
    up, down = match.linears
    if down.in_features % WIDTH:
        return f"its hidden width {down.in_features} is no multiple of {WIDTH}, which the 2:4 format of it needs"
    dtypes = [str(known_fake(linear.node).dtype).removeprefix("torch.") for linear in (up, down)]
    if dtypes[0] != dtypes[1]:
        return f"its projections compute in {dtypes[0]} and in {dtypes[1]}"
    if options.format == "cusparselt":
        return OPAQUE.format(format=options.format)
    return _before(match, _after(match, Hidden(act.name)))


def refuse_moved(match: Match) -> str:
    """Why a layer cannot run as one, at the moment of its last projection, or an empty sentence."""
    nodes = {*match.between, match.linears[-1].node}
    return "" if undisturbed(nodes) and in_one_mode(nodes) else MOVED


def refuse_partial(match: Match) -> str:
    """Why a layer of which some linears stay dense is given up, or an empty sentence."""
    down = match.linears[-1]
    if down not in match.stays:
        return ""
    whole = len(match.stays) == len(match.linears) and len(set(match.stays.values())) == 1
    return match.stays[down] if whole else f"its last projection: {match.stays[down]}"


def _after(match: Match, hidden: Hidden) -> Hidden | str:
    """Adds what stands between the activation and the last projection."""
    assert match.activation is not None
    for node in _chain(match.linears[-1].x, match.activation.node, match):
        op = spell(node)
        name = op.name if op is not None else general_name(node)
        if op is not None and name == "dropout":
            _, p, training, _ = op.args
            if not isinstance(p, (int, float)) or not isinstance(training, bool):
                return f"its dropout has a rate that varies{_where(node)}"
            if not training or p == 0:
                continue
            if hidden.dropout is not None:
                return f"a second dropout stands behind its activation{_where(node)}"
            scale = hidden.scale / (1 - p) if p < 1 else 1.0  # nothing is kept, so nothing is scaled
            hidden = dataclasses.replace(hidden, dropout=node, rate=float(p), scale=scale)
        elif op is not None and name in ("mul", "div"):
            factor = next(arg for arg in op.args if isinstance(arg, (int, float)))
            if not 0 < factor < math.inf:
                return f"its hidden state is multiplied by {factor:g}{_where(node)}"
            hidden = dataclasses.replace(hidden, scale=hidden.scale * (factor if name == "mul" else 1 / factor))
        elif name not in CASTS and name not in RESHAPES:
            return _in_the_way(node, name)
    return hidden


def _before(match: Match, hidden: Hidden | str) -> Hidden | str:
    """Adds what stands between the first projection and the activation."""
    if isinstance(hidden, str):
        return hidden
    assert match.activation is not None
    up = match.linears[0]
    for node in _chain(match.activation.h, up.node, match):
        op = spell(node)
        name = op.name if op is not None else general_name(node)
        if op is not None and name == "add" and hidden.bias is None and up.bias is None:
            hidden = dataclasses.replace(hidden, bias=next(a for a in op.args[:2] if known_fake(a).dim() == 1))
        elif name in CASTS and known_fake(node).dtype.itemsize >= known_fake(up.node).dtype.itemsize:
            continue
        elif not (op is not None and name == "dropout" and op.args[2] is False) and name not in RESHAPES:
            return _in_the_way(node, name)
    return hidden


def _chain(node: fx.Node, end: fx.Node, match: Match) -> list[fx.Node]:
    """The nodes from `node` up to `end`, without it; all of them are `match.between`."""
    found = []
    while node is not end:
        found.append(node)
        node = next(operand for operand in node.all_input_nodes if operand in match.between or operand is end)
    return found


def _in_the_way(node: fx.Node, name: str) -> str:
    return f"`{name}` stands between its projections; recipe='activation' takes relu and dropout alone{_where(node)}"


def _where(node: fx.Node) -> str:
    line = user_line(node)
    return f" ({line})" if line else ""


def is_candidate(match: Match) -> bool:
    """Whether another recipe's report should say of a layer that this one exists."""
    return match.rule == "plain" and match.activation is not None and match.activation.name in SPARSE
