"""The family act(gate) * up - linear, with two linears or one that makes both halves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from torch import fx

from s24compile.kernels.activations import ACTIVATIONS
from s24compile.passes.activations import Activation, Gating
from s24compile.passes.effects import undisturbed
from s24compile.passes.gates import half_of
from s24compile.passes.linears import Linear
from s24compile.passes.match import Gate, Match, Nodes, path_up, shared_hidden, trace, trace_activation
from s24compile.passes.spelling import spell


@dataclasses.dataclass(frozen=True)
class Side:
    """One factor of the product: the linear below it, which half of it (None: all), and the nodes on the way."""

    linear: Linear
    place: object
    nodes: tuple[fx.Node, ...]


def match_gated(nodes: Nodes, down: Linear) -> Match | None:
    """A gated feed-forward layer (SwiGLU, GEGLU, ReGLU), in both product orders and both orders of fused halves.

        g = linear(x, Wg)              [T, F]
        u = linear(x, Wu)              [T, F]       z = s24.linear(x, [Wg, Wu], values, metadata, ...)     [T, 2F]
        p = mul(silu(g), u)            [T, F]   ->  p = s24.glu(z, "silu", "first")                        [T, F]
        y = linear(p, W2)              [T, D]       y = s24.linear(p, [W2], values, metadata, ...)         [T, D]

        z = linear(x, W)               [T, 2F]      z = s24.linear(x, [W], values, metadata, ...)          [T, 2F]
        c = chunk(z, 2, -1)                     ->
        p = mul(c[1], silu(c[0]))      [T, F]       p = s24.glu(z, "silu", "first")                        [T, F]

    `mul(c[0], act(c[1]))` is gate="second". Where s24.glu has no such activation (quick_gelu, relu2), or something
    stands between a half and the product, the product stays as it is and only the linears change.
    Refused: a hidden node with another user, two linears with different inputs, interleaved halves.
    """
    after: list[fx.Node] = []
    for product in path_up(nodes.scope, down.x):
        for found in factors(nodes, product):
            match = _match_factors(nodes, down, after, found)
            if match is not None:
                return match
        after.append(product)
    return None


@dataclasses.dataclass(frozen=True)
class Factors:
    """A product act(gate) * up: what its activation and its other factor are computed from."""

    act: Activation | Gating
    product: fx.Node
    gate: fx.Node
    up: fx.Node
    nodes: tuple[fx.Node, ...]
    """What computes the product, and what stands between it and the activation."""
    direct: bool
    """Nothing stands between."""


def factors(nodes: Nodes, product: fx.Node) -> Iterator[Factors]:
    """The ways to read a node as act(gate) * up: factors multiplied in any order; then a product of two, with dropout,
    casts or reshapes of one of them between."""
    whole = nodes.gating_at(product)
    if whole is not None:
        yield Factors(whole, product, whole.gate, whole.up, whole.nodes, True)
    op = spell(product)
    if op is None or op.name != "mul" or op.inplace:
        return
    for activated, other in (op.args, op.args[::-1]):
        if isinstance(activated, fx.Node) and isinstance(other, fx.Node):
            act, between = trace_activation(nodes, activated)
            if act is not None:
                yield Factors(act, product, act.h, other, (product, *between, *act.nodes), False)


def _match_factors(nodes: Nodes, down: Linear, after: list[fx.Node], found: Factors) -> Match | None:
    gate, up = _side(nodes, found.gate), _side(nodes, found.up)
    if gate is None or up is None or (gate.place is None) != (up.place is None):
        return None
    hidden = [*after, *found.nodes, *gate.nodes, *up.nodes]
    fused = gate.linear if gate.place is not None else None
    direct = (
        found.direct
        and len(gate.nodes) == len(up.nodes) == (3 if fused else 1)
        and undisturbed({*found.nodes, *gate.nodes[:-1], *up.nodes[:-1]})
    )
    order: Literal["first", "second"] = "second" if gate.place == 1 else "first"
    linears = [fused, down] if fused else [gate.linear, up.linear, down]
    if (fused is None and gate.linear is up.linear) or (fused and fused is not up.linear):
        return None
    act = found.act
    match = Match("gated_fused" if fused else "gated", ACTIVATIONS[act.name].gated, nodes.scope, linears, hidden)
    match.gate = Gate(act, found.product, fused.node if fused else None, order, direct)
    match.refusal = (
        next((linear.unsupported for linear in linears if linear.unsupported), "")
        or _refusal(gate, up)
        or shared_hidden(hidden, {*hidden, down.node})
    )
    return match


def _refusal(gate: Side, up: Side) -> str:
    if "interleaved" in (gate.place, up.place):
        return (
            "its gate and up halves are interleaved (every second column); a fused gate needs them side by side, "
            "so permute the rows of the weight and use chunk(2, -1)"
        )
    if gate.place is not None and gate.place == up.place:
        return "both factors of its product are the same half of the projection"
    if gate.place is None and gate.linear.x is not up.linear.x:
        return "its gate and up projections have different inputs"
    return ""


def _side(nodes: Nodes, node: fx.Node) -> Side | None:
    at, passed = trace(nodes.scope, node)
    linear = nodes.at(at)
    if linear is not None:
        return Side(linear, None, (*passed, at))
    found = half_of(at)
    if found is None:
        return None
    z, place = found
    linear = nodes.at(z)
    cuts = [at]
    while cuts[-1] is not z and isinstance(cuts[-1].args[0], fx.Node):
        cuts.append(cuts[-1].args[0])
    return Side(linear, place, (*passed, *cuts)) if linear is not None else None
