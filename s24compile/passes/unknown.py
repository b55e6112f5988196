"""Linear - elementwise - linear, with an activation or gate that no family knows: found so that the report names it."""

from __future__ import annotations

from torch import fx

from s24compile.passes.gates import half_of
from s24compile.passes.linears import Linear, is_parameter
from s24compile.passes.lookalikes import FOREIGN_ACTIVATIONS
from s24compile.passes.match import Match, Nodes, trace
from s24compile.passes.pointwise import is_opaque, is_pointwise_op
from s24compile.passes.provenance import user_line
from s24compile.passes.scope import Scope, fake, same_shape
from s24compile.passes.spelling import CASTS, general_name

SUMS = frozenset({"add", "sub", "rsub", "neg", "detach", "clone", "zeros_like", "ones_like", *CASTS})
"""Elementwise and linear: projections that only these join are one projection (an adapter), no hidden layer."""
DROPOUTS = frozenset({"alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d"})
PRODUCTS = frozenset({"mul", "div"})
_LIMIT = 24
"""Elementwise nodes that are looked at; activations written out have up to eight."""


def match_unknown(nodes: Nodes, down: Linear) -> Match | None:
    """A hidden layer by its data flow, whatever its activation computes. Always refused.

    linear; sin; linear                     "`sin` stands between its projections and is no activation that s24 knows"
    linear; h + sin(h) ** 2; linear         the same
    linear; user_library.act; linear        the same: an op of the user's own, of one tensor, that keeps its shape
    mul(linear, linear); linear             "`mul` joins its projections without an activation that s24 knows"

    Not listed, because they are no hidden layer: projections that are only summed and scaled; and whatever has another
    tensor in it than projections, parameters and constants, or an op that is not elementwise (attention, norms,
    residuals, scans).
    """
    ups: list[Linear] = []
    between: list[fx.Node] = []
    waiting, seen = [down.x], set[fx.Node]()
    while waiting:
        at, _ = trace(nodes.scope, waiting.pop())
        if at in seen:
            continue
        seen.add(at)
        half = half_of(at)
        up = nodes.at(at if half is None else half[0])
        act = nodes.activation_at(at)
        if up is not None:
            ups.append(up)
        elif _is_constant(nodes.scope, at):
            continue
        elif len(between) == _LIMIT or not (act or _is_elementwise(at)):
            return None
        else:
            between.append(at)
            waiting += [act.h] if act else [operand for operand in at.all_input_nodes if fake(operand) is not None]
    reason = _reason(nodes, sorted(between))
    if not ups or not reason:
        return None
    linears = sorted(dict.fromkeys(ups), key=lambda linear: linear.node)
    refusal = next((n.unsupported for n in (*linears, down) if n.unsupported), reason)
    return Match("lookalike", "unknown", nodes.scope, [*linears, down], between, refusal=refusal)


def _reason(nodes: Nodes, between: list[fx.Node]) -> str:
    """Names the first op in the way; empty where the projections are only summed and scaled."""
    names = {node: general_name(node).rstrip("_") for node in between}
    strange = [n for n in between if names[n] not in SUMS | PRODUCTS and nodes.activation_at(n) is None]
    products = [n for n in between if names[n] in PRODUCTS and len(_varying(nodes.scope, n)) > 1]
    activated = any(nodes.activation_at(n) is not None for n in between)
    if strange:
        what = f"`{names[strange[0]]}` stands between its projections and is no activation that s24 knows"
        return what + _where(strange[0])
    joins = products or (between if activated else [])
    if not joins:
        return ""
    return f"`{names[joins[-1]]}` joins its projections without an activation that s24 knows{_where(joins[-1])}"


def _where(node: fx.Node) -> str:
    line = user_line(node)
    return f" ({line})" if line else ""


def _varying(scope: Scope, node: fx.Node) -> list[fx.Node]:
    """The operands of a node that are neither parameters nor constants."""
    operands = [operand for operand in node.all_input_nodes if fake(operand) is not None]
    return [operand for operand in operands if not _is_constant(scope, operand)]


def _is_constant(scope: Scope, node: fx.Node) -> bool:
    value = fake(node)
    if node.op == "get_attr" or (value is not None and value.dim() == 0 and not node.all_input_nodes):
        return True
    return node.op == "placeholder" and is_parameter(scope, node)


def _is_elementwise(node: fx.Node) -> bool:
    name = general_name(node).rstrip("_")
    if name in SUMS | DROPOUTS | FOREIGN_ACTIVATIONS:
        return True
    return is_pointwise_op(name) or _keeps_shape(node)


def _keeps_shape(node: fx.Node) -> bool:
    """Whether a node calls something that is not torch's on one tensor, whose shape the result keeps."""
    operands = [value for operand in node.all_input_nodes if (value := fake(operand)) is not None]
    value = fake(node)
    return is_opaque(node) and value is not None and len(operands) == 1 and same_shape(operands[0], value)
