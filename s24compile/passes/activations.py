"""Activations in a graph, found by what they compute: a node, what it is computed from, and the name of the function.

    gelu   gelu_tanh   silu   relu   relu2 = relu(h)^2   quick_gelu = h * sigmoid(1.702 h)      of h [.., F]

Nothing is rewritten here. An activation that an s24 op computes is put in place of its nodes by `rewrite`; any other
stays as the user wrote it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_float

from s24compile.passes.autograd_functions import function_of_user
from s24compile.passes.cuts import Cut, cuts
from s24compile.passes.functions import known
from s24compile.passes.scope import fake, known_fake
from s24compile.passes.spelling import ALIASING, CASTS, general_name, known_name


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation found in the graph."""

    name: str
    """A key of `kernels.activations.ACTIVATIONS`."""
    h: fx.Node
    """What it is computed from."""
    nodes: tuple[fx.Node, ...]
    """What computes it, the node of its result first."""
    exact: bool = True
    """Its gradient is that of `name` everywhere. False where it is another at exactly 0, as of clamp and maximum."""
    floats: tuple[torch.SymFloat, ...] = ()
    """Symbolic numbers that it was recognised with the present value of."""

    @property
    def node(self) -> fx.Node:
        """The node whose result is the activation."""
        return self.nodes[0]


@dataclasses.dataclass(frozen=True)
class Gating:
    """A product act(gate) * up, in whatever order its factors are multiplied and its terms are summed."""

    name: str
    """That of the activation."""
    gate: fx.Node
    up: fx.Node
    nodes: tuple[fx.Node, ...]
    """What computes it, the node of the product first."""
    exact: bool
    """As of `Activation`."""
    floats: tuple[torch.SymFloat, ...]


def find_activation(node: fx.Node) -> Activation | None:
    """The activation whose result is `node`, with as much of the graph in it as there is.

        mul(mul(z, 0.5), add(1, tanh(..)))  |  add(mul(0.5, z), mul(mul(0.5, z), tanh(..)))         gelu_tanh of z
        div(z, add(1, exp(neg(z))))                                                                 silu of z
        square(relu(z))  |  mul(relu(z), relu(z))  |  pow(clamp(z, min=0), 2)                       relu2 of z
        where(gt(z, 0), z, 0.0)  |  mul(z, gt(z, 0))                                                relu of z
        clamp(z, min=0)  |  maximum(z, zeros_like(z))                                      relu of z, not exact
        getitem(autograd_function_apply(forward, backward, z), 0)       where the bodies are one and its derivative

    Refused: another constant (silu with a slope of 1.5), a value that is rounded on the way, nodes between which
    something is written or the grad mode changes, a result wider than z that is seen by more than products.
    """
    own = function_of_user(node)
    if own is not None:
        return Activation(own.name, own.h, own.nodes, own.exact)
    if known_name(node) in CASTS:  # it belongs to what is between the activation and its user
        return None
    best = None
    for cut in cuts(node, 1):
        found = known(cut.expression())
        if found is not None and _stands_for(cut):
            best = Activation(found.name, cut.leaves[0], cut.nodes(), found.exact, cut.floats)
    return best


def find_gating(node: fx.Node) -> Gating | None:
    """The gate whose product is `node`, with as much of the graph in it as there is.

        mul(mul(u, g), sigmoid(g))  |  mul(silu(g), u)              silu, gate g, up u

    Refused: as of an activation.
    """
    best = None
    for cut in cuts(node, 2):
        found = known(cut.expression()) if len(cut.leaves) == 2 else None
        if found is not None and _stands_for(cut):
            gate, up = cut.leaves[found.gate], cut.leaves[1 - found.gate]
            best = Gating(found.name, gate, up, cut.nodes(), found.exact, cut.floats)
    return best


def hold_constants(found: Activation | Gating) -> None:
    """Guards every symbolic number in it, so that another value compiles again."""
    for number in found.floats:
        guard_float(number)


def _stands_for(cut: Cut) -> bool:
    """Whether one op on the leaves, which rounds once at the end, may stand for the expression."""
    values = [fake(leaf) for leaf in cut.leaves]
    dtypes = {value.dtype for value in values if value is not None}
    if len(dtypes) != 1 or None in values or not all(map(cut.keeps_dtype_of, cut.leaves)) or not cut.at_one_moment():
        return False
    (dtype,) = dtypes
    # On a GPU autocast computes `pow` in fp32, so GPT-2's gelu_new is fp32 of bf16 projections.
    return known_fake(cut.root).dtype == dtype or _is_only_multiplied(cut.root, dtype)


def _is_only_multiplied(node: fx.Node, dtype: torch.dtype) -> bool:
    """Whether a result is seen by products alone that round it to `dtype`."""
    for user in node.users:
        name, value = general_name(user), fake(user)
        if name in ALIASING or name in ("mul", "dropout"):
            if not _is_only_multiplied(user, dtype):
                return False
        elif name not in ("linear", "addmm", "matmul") or value is None or value.dtype != dtype:
            return False
    return True
