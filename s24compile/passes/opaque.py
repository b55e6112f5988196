"""Layers that are one piece to us: the user's own autograd.Function, around a fused Triton kernel most often.

They are found so that the report says why they train dense; what such a Function computes is not looked into. One whose
body spells its products has a row by `outside.py` already.
"""

from __future__ import annotations

from torch import fx

from s24compile.passes.linears import Linear, Weight, is_parameter, weight_of
from s24compile.passes.match import Match
from s24compile.passes.provenance import user_line
from s24compile.passes.scope import Scope, fake, hop_name, known_fake

FUNCTION = "autograd_function_apply"
KERNELS = frozenset({"triton_kernel_wrapper_mutation", "triton_kernel_wrapper_functional"})
SPELL = "spell it F.linear, activation, F.linear, and the compiler fuses what can be fused"


def opaque_layers(scope: Scope, known: set[fx.Node]) -> list[Match]:
    """Rows for layers inside one call. Always refused.

        autograd_function_apply(fwd, bwd, x, W1, W2)    "an autograd.Function computes ..."          W1, W2 [F, D]
        triton_kernel_wrapper_mutation(kwargs={x, W})   "a Triton kernel computes its projection"    W [N, K]

    A Function's two weights have the same two sizes, in any order: anything else (a loss with its head) is no layer.
    """
    rows = []
    for node in scope.graph.nodes:
        name = hop_name(node)
        if node in known or (name != FUNCTION and name not in KERNELS):
            continue
        weights = _weights(scope, node)
        if name == FUNCTION:
            what = "an autograd.Function computes the whole layer in one piece"
            weights = next(([a, b] for a in weights for b in weights if a is not b and _sizes(a) == _sizes(b)), [])
        else:
            what = "a Triton kernel computes its projection"
        if weights:
            line = user_line(node)
            reason = f"{what}, which is not looked into{f' ({line})' if line else ''}: {SPELL}"
            rows.append(Match("opaque", "custom", scope, _as_linears(scope, node, weights), refusal=reason))
    return rows


def _weights(scope: Scope, node: fx.Node) -> list[fx.Node]:
    """The parameters among the operands, seen through casts and transposes: matrices of both sizes above 1."""
    found = [weight.placeholder for o in node.all_input_nodes if isinstance(weight := weight_of(o), Weight)]
    matrices = [weight for weight in dict.fromkeys(found) if is_parameter(scope, weight)]
    return [w for w in matrices if min(known_fake(w).shape) > 1 and known_fake(w).is_floating_point()]


def _sizes(weight: fx.Node) -> list[int]:
    return sorted(int(size) for size in known_fake(weight).shape)


def _as_linears(scope: Scope, node: fx.Node, weights: list[fx.Node]) -> list[Linear]:
    """The projections that the weights seem to be, the first one [F, D]."""
    hidden, width = (int(size) for size in known_fake(weights[0]).shape)
    x = next((operand for operand in node.all_input_nodes if fake(operand) is not None), node)
    sizes = [(hidden, width), (width, hidden)]
    return [
        Linear(scope, node, x, weight, None, "out_in", out, into)
        for weight, (out, into) in zip(weights, sizes, strict=False)
    ]
