"""What a family's pattern found in a graph, and how patterns walk it. T tokens, D model width, F hidden width."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from torch import fx

from s24compile.passes.activations import Activation, Gating, find_activation, find_gating
from s24compile.passes.linears import Linear, Refusal, as_linear, as_refused, is_parameter
from s24compile.passes.provenance import user_line
from s24compile.passes.scope import Scope, fake
from s24compile.passes.spelling import CASTS, general_name, spell

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
    hidden: Hidden | None = None
    """What recipe="activation" makes of the layer, if that is its recipe and takes it."""
    stays: dict[Linear, str] = dataclasses.field(default_factory=dict)
    """Linears that stay dense although their site is taken -> why."""
    taken: list[Linear] = dataclasses.field(default_factory=list)
    """Linears that the policy gives to the rewrite."""
    narrow: list[Linear] = dataclasses.field(default_factory=list)
    """Of those that stay dense, the ones that multiply eight-bit floats all the same."""


@dataclasses.dataclass(frozen=True)
class Gate:
    """How a gated layer combines its halves: product = act(gate half) * other half."""

    act: Activation | Gating
    """`act.name`, and whether it is `act.exact`."""
    product: fx.Node
    fused: fx.Node | None
    """The one linear that makes both halves, or None for two linears."""
    order: Literal["first", "second"]
    """Which half of the (joined) result the activation is on."""
    direct: bool
    """Nothing but the activation stands between the halves and the product, so that one s24.glu is the same."""


@dataclasses.dataclass(frozen=True)
class Hidden:
    """A layer whose hidden state will be 2:4: what stands between its projections."""

    act: str
    scale: float = 1.0
    """What the activation is multiplied by, dropout's 1 / (1 - p) included."""
    dropout: fx.Node | None = None
    """The one that drops something, if any does."""
    rate: float = 0.0
    """Its p."""
    bias: fx.Node | None = None
    """Of the first projection, where autocast kept it from being its own."""


class Nodes:
    """What the nodes of one scope are: linears (canonical and refused), activations, gates. Each is looked for once."""

    def __init__(self, scope: Scope, refusals: Mapping[fx.Node, Refusal], everywhere: Mapping[Scope, Nodes]) -> None:
        self.scope = scope
        self.everywhere = everywhere
        """The nodes of every scope of the compilation, this one among them."""
        self.by_node: dict[fx.Node, Linear] = {}
        self._activations: dict[fx.Node, Activation | None] = {}
        self._gatings: dict[fx.Node, Gating | None] = {}
        for node in scope.graph.nodes:
            linear = as_linear(scope, node)
            if linear is None and node in refusals:
                linear = as_refused(scope, refusals[node])
            if linear is not None:
                self.by_node[node] = linear

    def at(self, node: fx.Node) -> Linear | None:
        """The linear whose result is `node`."""
        return self.by_node.get(node)

    def activation_at(self, node: fx.Node) -> Activation | None:
        """The activation whose result is `node`."""
        if node not in self._activations:
            self._activations[node] = None if node in self.by_node else find_activation(node)
        return self._activations[node]

    def gating_at(self, node: fx.Node) -> Gating | None:
        """The gate whose product is `node`."""
        if node not in self._gatings:
            self._gatings[node] = None if node in self.by_node else find_gating(node)
        return self._gatings[node]


def trace(scope: Scope, node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Walks up through what changes no feature position of a hidden activation.

    Dropout (any p, positional or keyword), casts, reshapes of the leading dims, scaling by a number, and the sum with
    a parameter that is a vector: a bias that autocast kept from folding, or that of a product that stays as it is.

    Returns:
        The first node that is none of these, and the nodes passed on the way.
    """
    *passed, end = path_up(scope, node)
    return end, passed


def trace_activation(nodes: Nodes, node: fx.Node) -> tuple[Activation | None, list[fx.Node]]:
    """`trace`, but only to the first activation: scaling by a number may be part of one.

    Returns:
        The activation, and the nodes passed on the way to it.
    """
    passed: list[fx.Node] = []
    for at in path_up(nodes.scope, node):
        found = nodes.activation_at(at)
        if found is not None:
            return found, passed
        passed.append(at)
    return None, passed


def path_up(scope: Scope, node: fx.Node) -> Iterator[fx.Node]:
    """`node`, and each node that `trace` comes by after it."""
    at: fx.Node | None = node
    while at is not None:
        yield at
        at = _looked_through(scope, at)


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
            if is_bias and other.op == "placeholder" and is_parameter(scope, other):
                return hidden
    return None


def _reshape_source(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
    before, after = fake(source), fake(node)
    if before is None or after is None or before.dtype != after.dtype or not before.dim() or not after.dim():
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
