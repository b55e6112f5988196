"""What looks like a feed-forward layer and cannot be taken: found so that the report can say why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import fx

from s24compile.kernels.activations import ACTIVATIONS
from s24compile.passes.effects import written_by
from s24compile.passes.gates import half_of
from s24compile.passes.linears import Linear
from s24compile.passes.match import Match, Nodes, trace
from s24compile.passes.pointwise import subject
from s24compile.passes.provenance import user_line
from s24compile.passes.scope import fake, hop_name, operand_index
from s24compile.passes.spelling import general_name, spell

FOREIGN_ACTIVATIONS = frozenset({
    "leaky_relu", "elu", "selu", "celu", "hardswish", "hardsigmoid", "hardtanh",
    "relu6", "mish", "softplus", "softsign", "tanh", "sigmoid", "log_sigmoid", "prelu", "rrelu", "tanhshrink",
    "softshrink", "hardshrink", "threshold", "glu", "relu", "silu", "gelu", "clamp",
    "clamp_min",
})  # fmt: skip
NORMS = frozenset({"layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "normalize"})
NAMES = {"hardtanh": "ReLU6 or another hardtanh", "glu": "F.glu, which gates with a sigmoid,"}
_TURNS = frozenset({"transpose", "permute", "movedim", "t"})
_STEPS_UP = 8
"""From the last projection to the first: activation, dropout, norm, the ends of a body, with some to spare."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A node on the way up from a last projection."""

    nodes: Nodes
    """Of the graph that it is in: the way may lead into a body or out of one."""
    node: fx.Node
    activated: bool = False
    """An activation or a gate lies behind, so that this is a hidden state."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step up."""

    to: Place
    reason: str = ""
    """Why what was passed is in the way; empty for what a layer may have there."""


def match_lookalike(nodes: Nodes, down: Linear) -> Match | None:
    """linear - something - linear, where the something is nearly that of a layer. Always refused.

    linear; leaky_relu; linear              "its activation leaky_relu is none of ..."
    linear; gelu; layer_norm; linear        a norm between (BERT's MLM head; SwiGLU with a norm): not one unit
    linear; glu; linear                     F.glu gates with a sigmoid
    linear; add; gelu; linear               the projection is summed with a second one (LoRA)
    linear; gelu; register_hook; linear     a hook on the hidden activation
    checkpoint(linear; gelu); linear        a part of it in a body
    einsum; gelu; transpose; linear         as its projection says
    """
    reason, place = "", Place(nodes, down.x)
    passed: list[tuple[Nodes, fx.Node]] = []
    for _ in range(_STEPS_UP):
        end, seen = trace(place.nodes.scope, place.node)
        place = dataclasses.replace(place, node=end)
        passed += [(place.nodes, node) for node in (*seen, end)]
        up = place.nodes.at(end)
        if up is not None:
            break
        step = next((step for rule in STEPS if (step := rule(place)) is not None), None)
        if step is None:
            return None
        reason, place = reason or step.reason, step.to
    else:
        return None
    refusal = up.unsupported or down.unsupported or reason
    if up is down or not refusal or not place.activated:
        return None
    acts = (found.name for where, node in passed if (found := where.activation_at(node)) is not None)
    between = [node for _, node in passed]
    return Match("lookalike", next(acts, "unknown"), nodes.scope, [up, down], between, refusal=refusal)


def _known_activation(place: Place) -> Step | None:
    """act(h): a layer has one."""
    act = place.nodes.activation_at(place.node)
    return None if act is None else Step(Place(place.nodes, act.h, activated=True))


def _norm(place: Place) -> Step | None:
    """layer_norm(a)"""
    name, source = general_name(place.node), subject(place.node)
    if name not in NORMS or source is None:
        return None
    reason = f"a {name} stands between its activation and its last projection{_line(place.node)}"
    return Step(dataclasses.replace(place, node=source), reason)


def _other_activation(place: Place) -> Step | None:
    """elu(h) | relu_(h), which others see"""
    name, source = general_name(place.node).rstrip("_"), subject(place.node)
    if name not in FOREIGN_ACTIVATIONS or source is None:
        return None
    if written_by(place.node):
        reason = f"its activation `{name}` works in place on a tensor that is used elsewhere too"
    else:
        reason = f"its activation {NAMES.get(name, name)} is none of {', '.join(ACTIVATIONS)}"
    return Step(Place(place.nodes, source, activated=True), reason + _line(place.node))


def _end_of_body(place: Place) -> Step | None:
    """getitem(tag_activation_checkpoint(body, ...), i)  ->  what the body returns there"""
    node, scope = place.node, place.nodes.scope
    call = subject(node) if general_name(node) == "getitem" else None
    child = scope.children.get(call) if call is not None else None
    index = node.args[1] if call is not None else None
    if call is None or child is None or not isinstance(index, int):
        return None
    results = child.graph.output_node().args[0]
    result = results[index] if isinstance(results, (tuple, list)) and index < len(results) else None
    return _other_graph(place, place.nodes.everywhere[child], result, call)


def _start_of_body(place: Place) -> Step | None:
    """a placeholder of a body  ->  what its call hands over"""
    scope = place.nodes.scope
    if place.node.op != "placeholder" or not scope.calls:
        return None
    parent, call = scope.calls[0]
    operand = call.args[operand_index(call, place.node, scope)]
    return _other_graph(place, place.nodes.everywhere[parent], operand, call)


def _other_graph(place: Place, nodes: Nodes, node: object, call: fx.Node) -> Step | None:
    if not isinstance(node, fx.Node):
        return None
    reason = f"only a part of it is in the body of `{hop_name(call)}`, which cuts it in two{_line(call)}"
    return Step(dataclasses.replace(place, nodes=nodes, node=node), reason)


def _higher_order(place: Place) -> Step | None:
    """register_hook(h, ...) | autograd_function_apply(...), and the results of one"""
    node, hop = place.node, hop_name(place.node)
    source = subject(node)
    if general_name(node) == "getitem" and source is not None and hop_name(source) is not None:
        return Step(dataclasses.replace(place, node=source))
    tensors = [operand for operand in node.all_input_nodes if fake(operand) is not None]
    if hop is None or not tensors:
        return None
    activated = place.activated or hop == "autograd_function_apply"
    reason = f"`{hop}` stands between its projections{_line(node)}"
    return Step(Place(place.nodes, tensors[0], activated), reason)


def _half(place: Place) -> Step | None:
    """getitem(chunk(z, 2, -1), i): a gate has two."""
    found = half_of(place.node)
    return None if found is None else Step(dataclasses.replace(place, node=found[0]))


def _turned(place: Place) -> Step | None:
    """transpose(a), around a 1x1 convolution, say. No reason by itself: a layer that mixes tokens is none of ours."""
    source = subject(place.node)
    is_turn = general_name(place.node) in _TURNS or place.node.args[1:] in (("T",), ("mT",))
    return Step(dataclasses.replace(place, node=source)) if is_turn and source is not None else None


def _product(place: Place) -> Step | None:
    """mul(act(h), r), where r is no second projection of the same input."""
    if _name(place.node) != "mul":
        return None
    for operand in _tensors(place.node):
        if place.nodes.activation_at(trace(place.nodes.scope, operand)[0]) is not None:
            reason = f"its product is not of two projections of one input{_line(place.node)}"
            return Step(Place(place.nodes, operand, activated=True), reason)
    return None


def _sum(place: Place) -> Step | None:
    """add(linear(x), r) below an activation. A sum above any activation is a residual: behind it lies another layer."""
    operands = _tensors(place.node)
    ends = [trace(place.nodes.scope, operand)[0] for operand in operands]
    linears = [end for end in ends if place.nodes.at(end) is not None]
    if _name(place.node) != "add" or not place.activated or not linears or len(operands) < 2:
        return None
    reason = "something is added to its projection before the activation (a low-rank adapter?)"
    return Step(dataclasses.replace(place, node=linears[0]), reason + _line(place.node))


STEPS: tuple[Callable[[Place], Step | None], ...] = (
    _known_activation, _norm, _other_activation, _end_of_body, _start_of_body, _higher_order, _half, _turned, _product,
    _sum,
)  # fmt: skip
"""How the way leads up past a node, tried in order. The docstring of each says which nodes it knows."""


def _name(node: fx.Node) -> str:
    op = spell(node)
    return "" if op is None else op.name


def _tensors(node: fx.Node) -> list[fx.Node]:
    return [n for n in node.args if isinstance(n, fx.Node) and fake(n) is not None]


def _line(node: fx.Node) -> str:
    line = user_line(node)
    return f" ({line})" if line else ""
