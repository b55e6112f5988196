"""Second pass: finds the layers, and what looks like one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from torch import fx

from s24compile.graphs.marks import mark_of
from s24compile.passes.broken import broken_layers
from s24compile.passes.gated import match_gated
from s24compile.passes.heads import output_head
from s24compile.passes.linears import Linear
from s24compile.passes.lookalikes import match_lookalike
from s24compile.passes.match import Match, Nodes
from s24compile.passes.opaque import opaque_layers
from s24compile.passes.outside import rows_outside
from s24compile.passes.plain import match_plain
from s24compile.passes.provenance import parameter_name
from s24compile.passes.scope import Scope
from s24compile.passes.state import State
from s24compile.passes.unknown import match_unknown


@dataclasses.dataclass(frozen=True)
class Finder:
    """A rule: a pattern anchored at the last projection. Its docstring is the specification."""

    name: str
    match: Callable[[Nodes, Linear], Match | None]


FINDERS = (
    Finder("gated", match_gated),
    Finder("plain", match_plain),
    Finder("lookalike", match_lookalike),
    Finder("unknown", match_unknown),
)
"""In order of preference at one projection."""


def find(state: State) -> int:
    """Fills `state.matches` for every graph; returns how many sites there are, lookalikes included."""
    everywhere: dict[Scope, Nodes] = {}
    for scope in state.scopes:
        everywhere[scope] = Nodes(scope, state.refusals, everywhere)
    found: list[Match] = []
    for scope, nodes in everywhere.items():
        own = [match for linear in nodes.by_node.values() if (match := _match(nodes, linear)) is not None]
        if scope is state.scopes[0]:
            own += broken_layers(state, nodes, _nodes_of(own))
        own += _single_linears(state, nodes, own)
        own += rows_outside(nodes, _nodes_of(own))
        found += own + opaque_layers(scope, _nodes_of(own))
    state.matches = _without_doubles(found)
    state.outside = _names_outside(state.matches, everywhere.values())
    return len(state.matches)


def _match(nodes: Nodes, linear: Linear) -> Match | None:
    return next((match for finder in FINDERS if (match := finder.match(nodes, linear)) is not None), None)


def _nodes_of(found: list[Match]) -> set[fx.Node]:
    return {linear.node for match in found for linear in match.linears}


def _names_outside(found: list[Match], everywhere: Iterable[Nodes]) -> tuple[str, ...]:
    """The parameters of linears that are in no row."""
    known = _nodes_of(found)
    others = [n for nodes in everywhere for n in nodes.by_node.values() if n.node not in known]
    names = [parameter_name(top) for linear in others for top in linear.weight_inputs if top.op == "placeholder"]
    listed = {parameter_name(top) for match in found for n in match.linears for top in n.weight_inputs}
    return tuple(name for name in dict.fromkeys(names) if name not in listed)


def _without_doubles(found: list[Match]) -> list[Match]:
    """Drops refused rows that say nothing which others do not.

    A lookalike whose linears all belong to layers that are taken, and any refused layer whose linears have rows of
    their own, which targets="linear" gives them.
    """
    whole = _nodes_of([match for match in found if not match.refusal])
    single = _nodes_of([match for match in found if match.rule == "linear"])

    def is_double(match: Match) -> bool:
        own = _nodes_of([match])
        of_taken = match.rule == "lookalike" and own <= whole
        return (
            bool(match.refusal)
            and match.rule != "linear"
            and (of_taken or (bool(own & single) and own <= whole | single))
        )

    return [match for match in found if not is_double(match)]


def _single_linears(state: State, nodes: Nodes, found: list[Match]) -> list[Match]:
    """With targets="linear", and in modules decorated without targets="down": every linear in no layer, on its own.

        linear(x, W, b)   ->   s24.linear(x, [W], values, metadata, ...)                    x [T, D], result [T, F]

    A refused layer is given up for its linears; then its own row goes. Refused: output heads, products that are no
    F.linear.
    """

    def is_wanted(linear: Linear) -> bool:
        mark = mark_of(linear.node)
        targets = state.config_for(mark).targets
        return targets == "linear" or (mark is not None and targets == "ffn")

    covered = _nodes_of([match for match in found if not match.refusal])
    single = []
    for linear in nodes.by_node.values():
        if linear.node in covered or not is_wanted(linear):
            continue
        match = Match("linear", "linear", nodes.scope, [linear])
        match.refusal = linear.unsupported or output_head(nodes, linear)
        single.append(match)
    return single
