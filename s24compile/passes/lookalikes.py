"""What looks like a feed-forward layer and cannot be taken: found so that the report can say why."""

from __future__ import annotations

from torch import fx

from s24compile.passes.gates import half_of
from s24compile.passes.linears import Linear, weight_of
from s24compile.passes.match import Match, Nodes, trace
from s24compile.passes.provenance import user_line
from s24compile.passes.scope import Scope, fake, hop_name, known_fake
from s24compile.passes.spelling import general_name, spell

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
CONTRACTIONS = frozenset({"einsum", "tensordot", "bmm", "baddbmm", "bilinear"})
GROUPED = frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback", "scaled_grouped_mm"})
FOREIGN_ACTIVATIONS = frozenset({
    "leaky_relu", "leaky_relu_", "elu", "elu_", "selu", "celu", "hardswish", "hardsigmoid", "hardtanh", "hardtanh_",
    "relu6", "mish", "softplus", "softsign", "tanh", "sigmoid", "log_sigmoid", "prelu", "rrelu", "tanhshrink",
    "softshrink", "hardshrink", "threshold", "glu", "relu", "silu", "gelu", "clamp",
})  # fmt: skip
NORMS = frozenset({"layer_norm", "rms_norm", "batch_norm", "group_norm", "instance_norm", "normalize"})
NAMES = {"hardtanh": "ReLU6 or another hardtanh", "glu": "F.glu, which gates with a sigmoid,"}


def foreign_linear(scope: Scope, node: fx.Node) -> Linear | None:
    """A contraction or 1x1 convolution with a parameter: linear in effect, but spelled in a way that is not taken.

    einsum("bsd,fd->bsf", x, W)  |  tensordot(x, W, dims=1)  |  conv2d(x, W[F, D, 1, 1])     refused, with the name
    """
    name = general_name(node)
    if name not in CONTRACTIONS and name not in CONVOLUTIONS:
        return None
    operands = [n for n in node.all_input_nodes if fake(n) is not None]
    x = next((n for n in operands if n.op != "placeholder"), operands[0] if operands else None)
    weights = [n for n in operands if n.op == "placeholder" and n is not x and known_fake(n).dim() > 1]
    if x is None or not weights:
        return None
    shape = known_fake(weights[0]).shape
    if name in CONVOLUTIONS and any(size != 1 for size in shape[2:]):
        return None
    what = "a 1x1 convolution" if name in CONVOLUTIONS else f"written with `{name}`"
    return Linear(
        scope, node, x, weights[0], None, "out_in", int(shape[0]), int(shape[1]),
        unsupported=f"its projection is {what}, which is not rewritten; use nn.Linear or F.linear",
    )  # fmt: skip


def match_lookalike(nodes: Nodes, down: Linear) -> Match | None:
    """linear - something - linear, where the something is nearly that of a family. Always refused.

    linear; leaky_relu; linear              "its activation leaky_relu is none of ..."
    linear; gelu; layer_norm; linear        a norm between (BERT's MLM head; SwiGLU with a norm): not one unit
    linear; glu; linear                     F.glu gates with a sigmoid
    linear; add; gelu; linear               the projection is summed with a second one (LoRA)
    linear; gelu; register_hook; linear     a hook on the hidden activation
    """
    reason, at, activated = "", down.x, False
    passed: list[fx.Node] = []
    for _ in range(6):
        at, seen = trace(nodes.scope, at)
        passed += [*seen, at]
        if nodes.at(at) is not None:
            break
        step = _step(nodes, at, activated)
        if step is None:
            return None
        activated = activated or _activates(nodes, at)
        reason, at = reason or step[0], step[1]
    up = nodes.at(at)
    if up is None or up is down or not reason or not activated:
        return None
    act = next((found.name for node in passed if (found := nodes.activation_at(node)) is not None), "unknown")
    return Match(
        "lookalike", act, nodes.scope, [up, down], passed, refusal=up.unsupported or down.unsupported or reason
    )


def _activates(nodes: Nodes, node: fx.Node) -> bool:
    """Whether a node is, or ends, an activation or a gate: below it stands a hidden activation."""
    name = general_name(node)
    is_act = nodes.activation_at(node) is not None or name in FOREIGN_ACTIVATIONS
    return is_act or name == "mul" or hop_name(node) == "autograd_function_apply"


def _step(nodes: Nodes, node: fx.Node, activated: bool) -> tuple[str, fx.Node] | None:
    """(why this node is in the way, the node above it); an empty reason for what a family would allow."""
    act = nodes.activation_at(node)
    if act is not None:
        return "", act.h
    name = general_name(node)
    line = user_line(node)
    where = f" ({line})" if line else ""
    tensors = [n for n in node.all_input_nodes if fake(n) is not None or name == "getitem"]
    if not tensors:
        return None
    if name in NORMS:
        return f"a {name} stands between its activation and its last projection{where}", tensors[0]
    if name in FOREIGN_ACTIVATIONS:
        op = spell(node)
        if op is not None and op.inplace:
            return f"its activation `{name}` works in place on a tensor that is used elsewhere too{where}", tensors[0]
        what = NAMES.get(name, name)
        return f"its activation {what} is none of gelu, gelu_tanh, silu, relu, relu2, quick_gelu{where}", tensors[0]
    hop = hop_name(node)
    if hop is not None or name == "getitem":
        inner = node.args[0] if name == "getitem" else None
        if isinstance(inner, fx.Node) and hop_name(inner) is not None:
            return "", inner
        if hop is not None and tensors:
            return f"`{hop}` stands between its projections{where}", tensors[0]
    found = half_of(node)
    if found is not None:
        return "", found[0]
    op = spell(node)
    # A sum before any activation is a residual: what lies above it is another layer.
    if op is not None and (op.name == "mul" or (op.name == "add" and activated)):
        return _through_binary(nodes, node, op.name, where)
    return None


def _through_binary(nodes: Nodes, node: fx.Node, name: str, where: str) -> tuple[str, fx.Node] | None:
    """Products and sums: half of a gate, or a linear's result with something added to it before the activation."""
    operands = [n for n in node.args if isinstance(n, fx.Node) and fake(n) is not None]
    ends = [trace(nodes.scope, operand)[0] for operand in operands]
    linears = [end for end in ends if nodes.at(end) is not None]
    if name == "add":
        if not linears or len(operands) < 2:
            return None
        return f"something is added to its projection before the activation (a low-rank adapter?){where}", linears[0]
    for operand, end in zip(operands, ends, strict=True):
        if nodes.activation_at(end) is not None:
            return f"its product is not of two projections of one input{where}", operand
    return None


def stacked_experts(scope: Scope) -> list[tuple[fx.Node, fx.Node]]:
    """(matmul, 3-D parameter) for each grouped or batched matmul with stacked expert weights [E, F, D]."""
    found = []
    for node in scope.graph.nodes:
        name = general_name(node)
        if name not in GROUPED and name not in ("bmm", "matmul", "baddbmm"):
            continue
        for operand in node.all_input_nodes:
            weight = operand
            while weight.op != "placeholder" and general_name(weight) in _EXPERT_VIEWS and weight.all_input_nodes:
                weight = weight.all_input_nodes[0]
            value = fake(weight)
            if weight.op == "placeholder" and value is not None and value.dim() == 3 and weight_of(weight) is None:
                found.append((node, weight))
    return found


_EXPERT_VIEWS = frozenset({"transpose", "getitem", "to", "contiguous", "permute", "getattr"})
