"""Third pass: decides which of the found linears are rewritten, and says why for each of the others.

`checks` holds what speaks against a layer or a linear by itself. What depends on more is here: profit, other uses of a
weight, fuel, and linears that two layers share.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from s24compile.graphs.layer import Layer
from s24compile.graphs.marks import mark_of
from s24compile.passes.checks import DENSE_PHASE_SENTENCE, Asked, against_layer, against_linear, multiplies_eight_bits
from s24compile.passes.hidden import hidden_of, refuse_moved, refuse_partial
from s24compile.passes.linears import Linear, is_weight_view
from s24compile.passes.match import Match
from s24compile.passes.provenance import parameter_name, user_line
from s24compile.passes.scope import Scope, fake, uses
from s24compile.passes.sites import site_of
from s24compile.passes.spelling import general_name
from s24compile.passes.state import State
from s24compile.report import Site

FUEL_SENTENCE = "out of fuel: S24_FUEL={fuel} allows no further rewrite"


def decide(state: State) -> int:
    """Fills `taken` of every match and `state.sites`; returns how many linears will be rewritten."""
    decorated = any(mark_of(node) is not None for scope in state.scopes for node in scope.graph.nodes)
    for match in state.matches:
        _ask(match, state, decorated)
    _refuse_shared_weights(state)
    claimed = _take(state)
    for match in state.matches:
        asked = [Asked(linear, match, state, decorated) for linear in match.stays if not match.refusal]
        match.narrow = [one.linear for one in asked if multiplies_eight_bits(one)]
    state.sites = [site_of(match, state) for match in state.matches]
    if state.cut_reason and not state.matches:
        state.sites.append(Site("", "unknown", "", "refused", state.cut_reason))
    return len(claimed)


def _ask(match: Match, state: State, decorated: bool) -> None:
    """Fills `refusal` and `stays` with what the checks and the cost model have against a layer."""
    match.refusal = match.refusal or against_layer(match, state, decorated) or _refuse_hidden(match, state)
    if match.refusal:
        return
    found = {linear: against_linear(Asked(linear, match, state, decorated)) for linear in match.linears}
    match.stays = {linear: why for linear, why in found.items() if why}
    match.refusal = refuse_partial(match) if match.hidden is not None else ""
    if not match.refusal and len(match.stays) < len(match.linears):
        match.refusal = _refuse_slow(match, state)


def _take(state: State) -> set[fx.Node]:
    """Gives each linear that nothing speaks against to the first layer that has it, while there is fuel."""
    fuel = state.fuel
    claimed: set[fx.Node] = set()
    for match in state.matches:
        free = [n for n in match.linears if n not in match.stays and n.node not in claimed]
        if match.refusal or not free:
            continue
        if fuel == 0:
            match.refusal = FUEL_SENTENCE.format(fuel=state.fuel)
            continue
        fuel = None if fuel is None else fuel - 1
        match.taken = free
        claimed.update(linear.node for linear in free)
    for match in state.matches:
        # The last linear of one layer can be the first of the next, which then has nothing to say of it.
        if match.taken:
            match.stays = {linear: why for linear, why in match.stays.items() if linear.node not in claimed}
    return claimed


def _refuse_hidden(match: Match, state: State) -> str:
    """Of a layer whose hidden state is to be 2:4: what recipe="activation" says to it."""
    mark = mark_of(match.linears[-1].node)
    if not state.config_for(mark).hidden:
        return ""
    found = hidden_of(match, state.options_for(mark))
    if isinstance(found, str):
        return found
    match.hidden = found
    return refuse_moved(match)


def _refuse_slow(match: Match, state: State) -> str:
    """What the cost model says; a decorated module is not asked about."""
    *firsts, last = match.linears
    first = match.linears[0]
    value = fake(first.node)
    if value is None or any(mark_of(linear.node) is not None for linear in match.linears):
        return ""
    hidden = last.in_features if last is not first else first.out_features
    tokens = [_hint(size) for size in value.shape[:-1]]
    count = None if any(size is None for size in tokens) else math.prod(size for size in tokens if size is not None)
    # A phase passes; what was worth while before it is so after it.
    never = [linear for linear, why in match.stays.items() if why != DENSE_PHASE_SENTENCE]
    options = state.options_for(None)
    layer = Layer(
        first.in_features,
        hidden,
        match.gate is not None,
        count,
        value.dtype,
        first=not any(linear in never for linear in firsts or [last]),
        last=last not in never,
        dx=options.dx,
        state=match.hidden is not None,
        dw=(options.dw_of(first.in_features), options.dw_of(last.in_features)),
    )
    return state.profitable(layer) or ""


def _hint(size: int | torch.SymInt) -> int | None:
    """A size as a number without a guard on it."""
    return size if isinstance(size, int) else size.node.hint


def _refuse_shared_weights(state: State) -> None:
    """Takes a weight only if every use of it is taken; refusing one use may refuse others, so to a fixpoint."""
    while True:
        # What is packed is a weight, or a hidden state: then weights are as free as in a dense layer.
        live = [(m, n) for m in state.matches if not (m.refusal or m.hidden) for n in m.linears if n not in m.stays]
        taken = {linear.node for _, linear in live}
        layouts: dict[fx.Node, set[str]] = {}
        for _, linear in live:
            for top in linear.weight_inputs:
                layouts.setdefault(top, set()).add(linear.layout)
        stay = [(match, linear, why) for match, linear in live if (why := _other_use(linear, state, taken, layouts))]
        for match, linear, why in stay:
            match.stays[linear] = why
        if not stay:
            return


def _other_use(linear: Linear, state: State, taken: set[fx.Node], layouts: dict[fx.Node, set[str]]) -> str:
    assert linear.weight is not None
    for top in linear.weight_inputs:
        if len(layouts[top]) > 1:
            return "its weight is used both as it is and transposed"
        for user in _users_of_weight(state.scopes[0], top):
            if user in taken and user.args[0] is not top:
                continue
            name = "an output of the graph" if user.op == "output" else f"`{general_name(user)}`"
            line = user_line(user)
            return f"its weight {parameter_name(top)} has another use, {name}{f' ({line})' if line else ''}"
    return ""


def _users_of_weight(scope: Scope, node: fx.Node) -> list[fx.Node]:
    """What uses a weight, through bodies, transposes and casts."""
    found = []
    for where, user, operand in uses(scope, node):
        if is_weight_view(user, operand):
            found += _users_of_weight(where, user)
        else:
            found.append(user)
    return found
