"""What a family's pattern found in a graph, and how patterns walk it. T tokens, D model width, F hidden width."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal

from torch import fx

from s24compile.passes.activations import Activation
from s24compile.passes.linears import CASTS, Linear, as_linear, is_parameter
from s24compile.passes.provenance import user_line
from s24compile.passes.scope import Scope, fake
from s24compile.passes.spelling import general_name, known_name, spell

RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous"})


@dataclasses.dataclass(eq=False)
class Match:
    """One site: the linears of a layer and the nodes between them; or a lookalike, then with a refusal."""

    rule: str
    """Name of the rule that matched, "plain", "gated", "linear", ..."""
    family: str
    """"gelu", "swiglu", ...: what the report calls it."""
    scope: Scope
    linears: list[Linear]
    """In the order (gate,) up, down."""
    between: list[fx.Node] = dataclasses.field(default_factory=list)
    """Hidden nodes, from the first linear's result to the last linear's input."""
    refusal: str = ""
    """Why the whole site cannot be taken."""
    gate: Gate | None = None
    activation: Activation | None = None
    """Of a layer without gate: `activation.name` is "gelu", "relu2", ..., `activation.node` the node of its result,
    `activation.h` what it is computed from. Also where no s24 op computes it."""
    stays: dict[Linear, str] = dataclasses.field(default_factory=dict)
    """Linears that stay dense although their site is taken -> why."""
    taken: list[Linear] = dataclasses.field(default_factory=list)
    """Linears that the policy gives to the rewrite."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """How a gated layer combines its halves: product = act(gate half) * other half."""

    act: str
    product: fx.Node
    fused: fx.Node | None
    """The one linear that makes both halves, or None for two linears."""
    order: Literal["first", "second"]
    """Which half of the (joined) result the activation is on."""
    direct: bool
    """Nothing but the activation stands between the halves and the product, so that one s24.glu is the same."""


class Nodes:
    """The linears of one scope, canonical and foreign, by node."""

    def __init__(self, scope: Scope, foreign: Callable[[Scope, fx.Node], Linear | None]) -> None:
        self.scope = scope
        self.by_node: dict[fx.Node, Linear] = {}
        for node in scope.graph.nodes:
            linear = as_linear(scope, node) or foreign(scope, node)
            if linear is not None:
                self.by_node[node] = linear

    def at(self, node: fx.Node) -> Linear | None:
        return self.by_node.get(node)


def trace(scope: Scope, node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Walks up through what changes no feature position of a hidden activation.

    Dropout (any p, positional or keyword), casts, reshapes of the leading dims, scaling by a number, and a bias
    that autocast kept from folding.

    Returns:
        The first node that is none of these, and the nodes passed on the way.
    """
    passed: list[fx.Node] = []
    while True:
        source = _looked_through(scope, node)
        if source is None:
            return node, passed
        passed.append(node)
        node = source


def _looked_through(scope: Scope, node: fx.Node) -> fx.Node | None:
    op = spell(node)
    if op is None:
        return _reshape_source(node) if general_name(node) in RESHAPES else None
    source = op.args[0]
    if not isinstance(source, fx.Node) or op.inplace:
        return None
    if op.name == "dropout" or op.name in CASTS:
        return source
    if op.name in RESHAPES:
        return _reshape_source(node)
    if op.name in ("mul", "div", "add"):
        pairs = ((source, op.args[1]),) if op.name == "div" else ((source, op.args[1]), (op.args[1], source))
        for hidden, other in pairs:
            if not isinstance(hidden, fx.Node) or fake(hidden) is None:
                continue
            if op.name != "add" and isinstance(other, (int, float)):
                return hidden
            vector = fake(other)
            is_bias = op.name == "add" and vector is not None and vector.dim() == 1 and isinstance(other, fx.Node)
            if is_bias and known_name(hidden) == "linear" and other.op == "placeholder" and is_parameter(scope, other):
                return hidden
    return None


def _reshape_source(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    before, after = fake(source), fake(node)
    if before is None or after is None or not before.dim() or not after.dim():
        return None
    return source if before.shape[-1] == after.shape[-1] and isinstance(after.shape[-1], int) else None


def shared_hidden(hidden: Iterable[fx.Node], inside: set[fx.Node]) -> str:
    """A sentence if any hidden node is used outside the layer, else ""."""
    for node in hidden:
        for user in node.users:
            if user not in inside:
                what = "is an output of the graph" if user.op == "output" else f"is also used by `{general_name(user)}`"
                line = user_line(user) or user_line(node)
                return f"its hidden activation `{node.name}` {what}{f' ({line})' if line else ''}"
    return ""
