"""Second pass: finds the layers of each family, and what looks like one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import fx

from s24compile.graphs.marks import mark_of
from s24compile.passes.broken import broken_layers
from s24compile.passes.gated import match_gated
from s24compile.passes.heads import output_head
from s24compile.passes.linears import Linear, is_parameter
from s24compile.passes.lookalikes import foreign_linear, match_lookalike, stacked_experts
from s24compile.passes.match import Match, Nodes
from s24compile.passes.plain import match_plain
from s24compile.passes.scope import Scope, fake, known_fake
from s24compile.passes.spelling import general_name
from s24compile.passes.state import State
from s24compile.passes.unknown import match_unknown

FASTPATH_SENTENCE = (
    "nn.TransformerEncoderLayer took its fused inference path, one op for the whole layer, with dense weights; "
    "torch.backends.mha.set_fastpath_enabled(False) keeps evaluation as sparse as training"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A rule: a pattern anchored at the last projection. Its docstring is the specification."""

    name: str
    match: Callable[[Nodes, Linear], Match | None]


FAMILIES = (
    Family("gated", match_gated),
    Family("plain", match_plain),
    Family("lookalike", match_lookalike),
    Family("unknown", match_unknown),
)
"""In order of preference at one projection."""


def find(state: State) -> int:
    """Fills `state.matches` for every graph; returns how many sites there are, lookalikes included."""
    for scope in state.scopes:
        nodes = Nodes(scope, foreign_linear)
        found: list[Match] = []
        for linear in nodes.by_node.values():
            match = next((m for family in FAMILIES if (m := family.match(nodes, linear)) is not None), None)
            if match is not None:
                found.append(match)
        found = _without_doubles(found)
        if scope is state.scopes[0]:
            found += broken_layers(state, nodes, {linear.node for match in found for linear in match.linears})
        found += _single_linears(state, nodes, found)
        found += _unsupported(scope, nodes, {linear.node for match in found for linear in match.linears})
        state.matches += found
    return len(state.matches)


def _without_doubles(found: list[Match]) -> list[Match]:
    """Drops a refused lookalike whose last projection is part of a layer that is taken whole."""
    whole = {linear.node for match in found if not match.refusal for linear in match.linears}
    return [m for m in found if not (m.rule == "lookalike" and all(linear.node in whole for linear in m.linears))]


def _single_linears(state: State, nodes: Nodes, found: list[Match]) -> list[Match]:
    """With targets="linear", and in modules decorated without targets="down": every linear in no layer, on its own.

        linear(x, W, b)   ->   s24.linear(x, [W], values, metadata, ...)                    x [T, D], result [T, F]

    A refused layer of ordinary linears is given up for its linears; then its own row goes. Refused: output heads.
    """

    def is_wanted(linear: Linear) -> bool:
        mark = mark_of(linear.node)
        targets = state.config_for(mark).targets
        return targets == "linear" or (mark is not None and targets == "ffn")

    covered = {linear.node for match in found if not match.refusal for linear in match.linears}
    single = []
    for linear in nodes.by_node.values():
        if linear.node in covered or linear.unsupported or not is_wanted(linear):
            continue
        match = Match("linear", "linear", nodes.scope, [linear])
        match.refusal = output_head(nodes, linear)
        single.append(match)
    taken = {match.linears[0].node for match in single}
    found[:] = [m for m in found if not m.refusal or not all(linear.node in taken for linear in m.linears)]
    return single


def _unsupported(scope: Scope, nodes: Nodes, known: set[fx.Node]) -> list[Match]:
    """Rows for what no pattern can hold: stacked experts, sharded weights, torch's fused encoder layer."""
    rows = []
    for node, weight in stacked_experts(scope):
        if not is_parameter(scope, weight):
            continue
        shape = [int(size) for size in known_fake(weight).shape]
        linear = Linear(scope, node, node, weight, None, "out_in", shape[1], shape[2])
        how = f"stacked in one 3-D parameter and multiplied by `{general_name(node)}`"
        reason = f"its expert weights are {how}, which is not rewritten"
        rows.append(Match("experts", "experts", scope, [linear], refusal=reason))
    for linear in nodes.by_node.values():
        value = fake(linear.weight)
        if linear.node not in known and type(value).__name__ == "DTensor":
            reason = "its weight is a DTensor (tensor parallel), which is not rewritten"
            rows.append(Match("sharded", "linear", scope, [linear], refusal=reason))
    fast_path = getattr(torch, "_transformer_encoder_layer_fwd", None)
    fused = scope.graph.find_nodes(op="call_function", target=fast_path)
    return rows + [_fast_path_row(scope, node) for node in fused]


def _fast_path_row(scope: Scope, node: fx.Node) -> Match:
    linear = Linear(scope, node, node, None, None, "out_in", 0, 0)
    reason = FASTPATH_SENTENCE
    return Match("fast_path", "encoder layer", scope, [linear], refusal=reason)
