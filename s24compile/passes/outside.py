"""Rows for products that no pattern holds: stacked experts, sharded weights, bodies that nobody enters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import fx

from s24compile.passes.linear_rules import PRODUCTS
from s24compile.passes.linears import Linear, is_parameter, parameters_of
from s24compile.passes.match import Match, Nodes
from s24compile.passes.opaque import FUNCTION, SPELL
from s24compile.passes.pointwise import is_opaque
from s24compile.passes.scope import Scope, fake, hop_name, known_fake
from s24compile.passes.spelling import general_name
from s24compile.torch_internals.graphs import ENCODER_LAYER, GROUPED_MM, pytree

FASTPATH_SENTENCE = (
    "nn.TransformerEncoderLayer took its fused inference path, one op for the whole layer, with dense weights; "
    "torch.backends.mha.set_fastpath_enabled(False) keeps evaluation as sparse as training"
)
DTENSOR_SENTENCE = (
    "its weight is a DTensor (tensor parallel), which is not rewritten: it trains dense; FSDP2 (fully_shard) without "
    "it keeps layers sparse, see docs/distributed.md"
)
GROUPED = frozenset({"grouped_mm", GROUPED_MM, "grouped_mm_fallback", "scaled_grouped_mm"})
BATCHED = frozenset({"bmm", "matmul", "baddbmm"})
_VIEWS_OF_EXPERTS = frozenset({"transpose", "getitem", "to", "contiguous", "permute", "getattr"})


def rows_outside(nodes: Nodes, known: set[fx.Node]) -> list[Match]:
    """Refused rows for products in no layer that others would not name; `known`: the linears that have a row."""
    scope = nodes.scope
    rows = []
    for node, weight in _stacked_experts(scope):
        shape = [int(size) for size in known_fake(weight).shape]
        linear = Linear(scope, node, node, weight, None, "out_in", shape[1], shape[2])
        how = f"stacked in one 3-D parameter and multiplied by `{general_name(node)}`"
        reason = f"its expert weights are {how}, which is not rewritten"
        rows.append(Match("experts", "experts", scope, [linear], refusal=reason))
    for linear in nodes.by_node.values():
        value = fake(linear.weight)
        if linear.node not in known and type(value).__name__ == "DTensor":
            rows.append(Match("sharded", "linear", scope, [linear], refusal=DTENSOR_SENTENCE))
    for call in scope.graph.nodes:
        weights = _weights_inside(scope, call)
        if weights:
            linear = Linear(scope, call, call, None, None, "out_in", 0, 0, parameters=tuple(dict.fromkeys(weights)))
            rows.append(Match("body", "unknown", scope, [linear], refusal=_reason_of(call)))
    fast_path = getattr(torch, ENCODER_LAYER, None)
    for node in scope.graph.find_nodes(op="call_function", target=fast_path):
        linear = Linear(scope, node, node, None, None, "out_in", 0, 0)
        rows.append(Match("fast_path", "encoder layer", scope, [linear], refusal=FASTPATH_SENTENCE))
    return rows


def _weights_inside(scope: Scope, call: fx.Node) -> list[fx.Node]:
    """The matrices of parameters that are multiplied by inside a call that the passes do not enter.

    cond(p, then, else, (x, W, b))  |  scan(body, init, xs, (W, b))  |  autograd_function_apply(forward, backward, x, W)
    user_library.mlp(x, W1, W2)                         any call that is not torch's and is given matrices of parameters

    Top-level placeholders; empty for what computes without parameters.
    """
    if call in scope.children or call.op != "call_function":
        return []
    if hop_name(call) is not None:
        return _weights_in_bodies(call, lambda operand: parameters_of(scope, operand))
    if not is_opaque(call):
        return []
    sources = {o: parameters_of(scope, o) for o in call.all_input_nodes if fake(o) is not None}
    matrices = [operand for operand, found in sources.items() if found and known_fake(operand).dim() == 2]
    return [w for matrix in matrices for w in sources[matrix]] if not all(sources.values()) else []


def _weights_in_bodies(call: fx.Node, parameters: Callable[[fx.Node], tuple[fx.Node, ...]]) -> list[fx.Node]:
    """`_weights_inside` of a higher-order op; `parameters`: what an operand of the call is computed from."""
    owner = call.graph.owning_module
    operands: list[fx.Node] = []
    bodies: list[fx.GraphModule] = []
    for value in pytree.tree_leaves((call.args, call.kwargs)):
        if isinstance(value, fx.Node):
            body = getattr(owner, str(value.target), None) if value.op == "get_attr" else None
            bodies += [body] if isinstance(body, fx.GraphModule) else []
            operands += [] if isinstance(body, fx.GraphModule) else [value]
    found: list[fx.Node] = []
    for body in bodies[:1] if hop_name(call) == FUNCTION else bodies:  # not of its backward
        placeholders = body.graph.find_nodes(op="placeholder")
        given = dict(zip(reversed(placeholders), reversed(operands), strict=False))  # a condition comes first

        def from_outside(node: fx.Node, given: Mapping[fx.Node, fx.Node] = given) -> tuple[fx.Node, ...]:
            leaves = _leaves(node)
            sources = [parameters(given[leaf]) if leaf in given else () for leaf in leaves]
            return tuple(p for source in sources for p in source) if all(sources) else ()

        for node in body.graph.nodes:
            if hop_name(node) is not None:
                found += _weights_in_bodies(node, from_outside)
            elif general_name(node) in PRODUCTS:
                matrices = [o for o in node.all_input_nodes if (value := fake(o)) is not None and value.dim() == 2]
                found += [weight for matrix in matrices for weight in from_outside(matrix)]
    return found


def _leaves(node: fx.Node) -> list[fx.Node]:
    """The placeholders that a node of a body is computed from."""
    waiting, seen = [node], {node}
    while waiting:
        for operand in waiting.pop().all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                waiting.append(operand)
    return [at for at in sorted(seen) if at.op == "placeholder"]


def _reason_of(call: fx.Node) -> str:
    hop = hop_name(call)
    if hop is None:
        return f"it is inside `{general_name(call)}`, which is no op of torch's, and cannot be looked into"
    advice = f": {SPELL}" if hop == FUNCTION else ""
    return f"it is in the body of `{hop}`, which is not rewritten{advice}"


def _stacked_experts(scope: Scope) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(matmul, 3-D parameter) for each grouped or batched matmul with stacked expert weights [E, F, D]."""
    for node in scope.graph.nodes:
        if general_name(node) not in GROUPED | BATCHED:
            continue
        for weight in node.all_input_nodes:
            while weight.op != "placeholder" and general_name(weight) in _VIEWS_OF_EXPERTS and weight.all_input_nodes:
                weight = weight.all_input_nodes[0]
            value = fake(weight)
            is_stack = weight.op == "placeholder" and value is not None and value.dim() == 3
            if is_stack and is_parameter(scope, weight):
                yield node, weight
