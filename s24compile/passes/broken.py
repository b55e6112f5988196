"""Layers that a graph break cuts in two: each half is alone in its graph, and is found so that the report says why."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from torch import fx

from s24compile.kernels.activations import ACTIVATIONS
from s24compile.passes.gated import factors
from s24compile.passes.linears import Linear, is_parameter
from s24compile.passes.match import Match, Nodes, path_up, trace, trace_activation
from s24compile.passes.provenance import relative
from s24compile.passes.scope import Scope
from s24compile.passes.spelling import SLICING, general_name
from s24compile.passes.state import State

_RESUMED = re.compile(r'File "(?P<file>[^"]+)", line \d+, in torch_dynamo_resume_in_\w*_at_(?P<line>\d+)')
"""The frame that goes on after a graph break, as stack traces show it: Dynamo names it after the line of the break."""


def broken_layers(state: State, nodes: Nodes, known: set[fx.Node]) -> list[Match]:
    """Rows for the halves of layers in a graph that a break ends, or that goes on after one. Always refused.

        linear; gelu; output                "its last projection is in another graph: a graph break (file:12) lies ..."
        mul(silu(linear), linear); output   the same
        placeholder; gelu; linear           "a projection of it is in another graph: ..."

    Not listed: a graph that ends where the user's function does, or begins there, is whole. A break before the
    activation leaves a bare linear in the graph before, as attention's projections are: its row is that of the second
    half.
    """
    if state.cut_reason:
        return []
    rows = []
    if state.broken_at is not None:
        why = f"its last projection is in another graph: a graph break{_at(state.broken_at)} lies between"
        for family, linears in _first_halves(nodes):
            if not any(linear.node in known for linear in linears):
                known = known | {linear.node for linear in linears}
                rows.append(Match("broken", family, nodes.scope, linears, refusal=why))
    for linear in nodes.by_node.values():
        second = None if linear.node in known else _second_half(nodes, linear)
        if second is not None:
            family, linears, place = second
            why = f"a projection of it is in another graph: a graph break{_at(place)} lies between"
            rows.append(Match("broken", family, nodes.scope, linears, refusal=why))
    return rows


def _at(place: str) -> str:
    return f" ({place})" if place else ""


def _first_halves(nodes: Nodes) -> Iterator[tuple[str, list[Linear]]]:
    """(family, projections) of each hidden activation that leaves the graph."""
    for out in nodes.scope.graph.output_node().all_input_nodes:
        hidden = _hidden(nodes, out)
        if hidden is None:
            continue
        linears = [linear for end in hidden.ends if (linear := nodes.at(end)) is not None]
        if len(linears) == len(hidden.ends):
            yield hidden.family, list(dict.fromkeys(linears))


def _second_half(nodes: Nodes, down: Linear) -> tuple[str, list[Linear], str] | None:
    """(family, projections, place of the break) where `down` reads an activation of what an earlier graph has left."""
    hidden = None if nodes.scope.calls else _hidden(nodes, down.x)
    resumed = hidden and _RESUMED.search(str(hidden.node.meta.get("stack_trace") or ""))
    if hidden is None or not resumed:
        return None
    linears = [linear for end in hidden.ends if (linear := nodes.at(end)) is not None]
    left = [end for end in hidden.ends if end.op == "placeholder" and not is_parameter(nodes.scope, end)]
    if not left or len(left) + len(linears) < len(hidden.ends):
        return None
    return hidden.family, [*linears, down], f"{relative(resumed['file'])}:{resumed['line']}"


@dataclasses.dataclass(frozen=True)
class _Hidden:
    """A hidden activation, wherever its projections are."""

    family: str
    node: fx.Node
    ends: tuple[fx.Node, ...]
    """What its one or two factors are computed from."""


def _hidden(nodes: Nodes, node: fx.Node) -> _Hidden | None:
    act, _ = trace_activation(nodes, node)
    if act is not None:
        return _Hidden(act.name, act.node, (_source(nodes.scope, act.h),))
    for product in path_up(nodes.scope, node):
        for found in factors(nodes, product):
            ends = (_source(nodes.scope, found.gate), _source(nodes.scope, found.up))
            return _Hidden(ACTIVATIONS[found.act.name].gated, product, ends)
    return None


def _source(scope: Scope, node: fx.Node) -> fx.Node:
    """What a hidden tensor, or a half of it, is a view of."""
    at, _ = trace(scope, node)
    while general_name(at) in SLICING and at.args and isinstance(at.args[0], fx.Node):
        at = at.args[0]
    return at
