"""The rules that bring every spelling of a linear layer to the canonical form of `linears.py`.

Each takes a node and returns its canonical replacement; a `Refusal` where the node is a product by a parameter that has
no such form; None where the node is none of its own.
"""

from __future__ import annotations

import builtins

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.passes.effects import undisturbed
from s24compile.passes.emit import Emitter, erase_unused
from s24compile.passes.linears import Refusal, Weight, is_parameter, parameters_of, weight_of
from s24compile.passes.scope import Scope, fake, known_fake, operand_index
from s24compile.passes.spelling import CASTS, Op, general_name, spell
from s24compile.torch_internals.graphs import NATIVE_ATTENTION

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
BATCHED = frozenset({"bmm", "baddbmm", "matmul"})
PRODUCTS = CONVOLUTIONS | BATCHED | {
    "addmm", "linear", "mm", "mv", "addmv", "addbmm", "einsum", "tensordot", "inner", "bilinear", "multi_dot",
    "chain_matmul", NATIVE_ATTENTION, "addmm_", "addmv_", "addbmm_", "baddbmm_",
}  # fmt: skip
"""Ops that multiply matrices."""


def l1(scope: Scope, node: fx.Node, op: Op, emit: Emitter) -> fx.Node | None:
    """F.linear in keyword form, with a weight that is cast or transposed twice, or behind a removable cast of x.

        linear(input=x, weight=W, bias=b)               ->  linear(x, W, b)
        linear(x, to(W, dtype), b)                      ->  linear(x, W, b)
        h32 = to(h, float32); linear(h32, W, b)  [bf16] ->  linear(h, W, b)          h bf16 [.., F]

    The cast of x goes only where autocast undoes it: the linear's result has the dtype that h had before it was
    widened (T5). In a bf16 model with an fp32 W the result is fp32, and the cast stays. Weight casts go because
    s24.linear takes the master weight as it is and packs it in the dtype of the result. A weight that is computed is
    `as_linear`'s to tell.
    """
    x, operand, bias = op.args
    weight = weight_of(operand, node)
    if not isinstance(weight, Weight) or not is_parameter(scope, weight.placeholder):
        return None
    kept = _without_round_trip(x, node)
    plain = kept is x and not node.kwargs and len(node.args) == 3
    if plain and (operand is weight.placeholder or _is_plain_transpose(operand)):
        return None
    return emit.same_value(F.linear, kept, _operand(weight, emit), bias)


def conv1d(scope: Scope, node: fx.Node, op: Op, emit: Emitter) -> fx.Node | Refusal | None:
    """HF Conv1D's product: W is stored [in, out].

        addmm(b, x2, W)            ->  linear(x2, getattr(W, "T"), b)        x2 [T, in], W [in, out], b [out]

    Refused: beta or alpha other than 1, a bias that is no vector, what `matmul` refuses.
    """
    bias, x, operand, beta, alpha = op.args
    weight, vector = _weight_on_right(scope, node, x, operand), fake(bias)
    if not isinstance(weight, Weight):
        return weight
    if (beta, alpha) != (1, 1):
        scaled = f"addmm(beta={beta}, alpha={alpha})"
        return Refusal(f"its product is scaled, by {scaled}; scale its input or its result instead", node)
    if vector is None or vector.dim() != 1:
        return Refusal("its product is added to a matrix by addmm; add that to its result instead", node)
    return emit.same_value(F.linear, x, _operand(weight, emit), bias)


def matmul(scope: Scope, node: fx.Node, op: Op, emit: Emitter) -> fx.Node | Refusal | None:
    """A product with a parameter on the right, transposed (Falcon) or stored [in, out].

        matmul(x, getattr(W, "T")) ->  linear(x, W)                           W [out, in]
        matmul(x, W)               ->  linear(x, getattr(W, "T"))             W [in, out]

    Refused: a matrix on the right that is computed from parameters, x a vector. Left alone: any other tensor on the
    right (attention scores are matmuls too).
    """
    x, operand = op.args
    weight = _weight_on_right(scope, node, x, operand)
    return emit.same_value(F.linear, x, _operand(weight, emit), None) if isinstance(weight, Weight) else weight


def product(scope: Scope, node: fx.Node, _: Emitter) -> Refusal | None:
    """Every other product by a parameter, or by what is computed from parameters. Always refused.

        matmul(W, x)  |  einsum("bsd,fd->bsf", x, W)  |  tensordot(x, W, dims=1)  |  conv2d(x, W[F, D, 1, 1])

    Left alone: convolutions over more than one position, batches of matrices in one parameter (`stacked_experts`).
    """
    name = general_name(node).rstrip("_")
    matrices = [o for o in node.all_input_nodes if (value := fake(o)) is not None and value.dim() > 1]
    weights = [o for o in matrices if parameters_of(scope, o)]
    if not weights:
        return None
    shape = known_fake(weights[-1]).shape
    if name in CONVOLUTIONS:
        if any(size != 1 for size in shape[2:]):
            return None
        what = "a 1x1 convolution"
    elif name in BATCHED and len(shape) > 2:
        return None
    else:
        what = f"written with `{name}`"
        what += " and the weight on its left" if name == "matmul" else ""
    return Refusal(f"its projection is {what}, which is not rewritten; use nn.Linear or F.linear", node, whole=True)


def late_bias(scope: Scope, node: fx.Node, op: Op, emit: Emitter) -> fx.Node | None:
    """A bias added after the product.

        y = linear(x, W); add(y, b)  ->  linear(x, W, b)                      b [out]

    Left alone: y used elsewhere, b no vector of length out, or a sum that promotes (under autocast y is bf16 and b
    fp32, so the sum is fp32: folding b would round it).
    """
    if op.inplace:  # of a sum that writes to what others see
        return None
    for y, b in (op.args[:2], op.args[1::-1]):
        inner, bias, value, out = spell(y), fake(b), fake(y), fake(node)
        if inner is None or inner.name != "linear" or inner.args[2] is not None or len(y.users) != 1:
            continue
        if bias is None or value is None or out is None or bias.dim() != 1 or not is_parameter(scope, b):
            continue
        if bias.shape[0] == value.shape[-1] and out.dtype == value.dtype:
            return emit.same_value(F.linear, inner.args[0], inner.args[1], b)
    return None


def type_as(scope: Scope, node: fx.Node, emit: Emitter) -> fx.Node | None:
    """A weight cast to the dtype of its operand, which would count as another use of that.

        type_as(W, x), type_as(W.T, x)  ->  to(W, x.dtype), to(W.T, x.dtype)

    Left alone: what is no weight, and a move to another device.
    """
    operand = node.args[0] if len(node.args) == 2 and not node.kwargs else None
    before, after, weight = fake(operand), fake(node), weight_of(operand)
    if not isinstance(weight, Weight) or not is_parameter(scope, weight.placeholder):
        return None
    if before is None or after is None or before.device != after.device:
        return None
    return emit.method("to", operand, after.dtype)


def flattened(scope: Scope, node: fx.Node, op: Op, emit: Emitter) -> fx.Node | None:
    """Reshapes around one linear that only merge and restore the leading dims.

        y = linear(view(x, (-1, in)), W, b); view(y, (*x.shape[:-1], out))  ->  linear(x, W, b)

    Left alone: y used elsewhere, a last dim that the reshape changes, a result shape other than x's leading dims,
    views as another dtype, which read the bits in another way.
    """
    inner = spell(op.args[0])
    if inner is None or inner.name != "linear" or len(op.args[0].users) != 1:
        return None
    outer = spell(inner.args[0])
    if outer is None or outer.name not in ("view", "reshape"):
        return None
    x, out, flat = fake(outer.args[0]), fake(node), fake(inner.args[0])
    if x is None or out is None or flat is None or x.dim() != out.dim():
        return None
    if x.dtype != flat.dtype or out.dtype != known_fake(op.args[0]).dtype:
        return None
    same = all(statically_known_true(a == b) for a, b in zip(x.shape[:-1], out.shape[:-1], strict=True))
    if not same or x.shape[-1] != flat.shape[-1] or out.shape[-1] != known_fake(op.args[0]).shape[-1]:
        return None
    return emit.same_value(F.linear, outer.args[0], inner.args[1], inner.args[2])


def _weight_on_right(scope: Scope, node: fx.Node, x: object, operand: object) -> Weight | Refusal | None:
    """The weight of a product x @ operand, as F.linear takes it; None where the operand is computed from inputs."""
    value, matrix = fake(x), fake(operand)
    if value is None or matrix is None or matrix.dim() != 2 or not isinstance(operand, fx.Node):
        return None
    if not parameters_of(scope, operand):
        return None
    weight = weight_of(operand, node)
    if isinstance(weight, Refusal):
        return Refusal(weight.sentence, node)
    if weight is None or not is_parameter(scope, weight.placeholder):
        return Refusal("its weight is computed outside of the body that multiplies by it", node)
    if value.dim() < 2:
        return Refusal("its input is a vector", node)
    # A matmul takes [in, out]: seen from F.linear's [out, in], once more transposed.
    return Weight(weight.placeholder, not weight.transposed)


def _operand(weight: Weight, emit: Emitter) -> fx.Node:
    """The canonical operand: the placeholder, or its `getattr(W, "T")`."""
    return emit.function(builtins.getattr, weight.placeholder, "T") if weight.transposed else weight.placeholder


def _is_plain_transpose(operand: object) -> bool:
    op = spell(operand)
    return op is not None and op.name == "getattr" and op.args[1] == "T" and op.args[0].op == "placeholder"


def _without_round_trip(x: object, linear: fx.Node) -> object:
    """The operand before a widening cast that autocast undoes; else x itself."""
    op, out = spell(x), fake(linear)
    if op is None or op.name not in CASTS or not isinstance(x, fx.Node):
        return x
    before, after = fake(op.args[0]), fake(x)
    if before is None or after is None or out is None:
        return x
    wider = after.dtype in (torch.float32, torch.float64) and before.dtype in (torch.float16, torch.bfloat16)
    return op.args[0] if wider and out.dtype == before.dtype and undisturbed((x, linear)) else x


def sink_weight_views(scope: Scope) -> int:
    """Moves transposes and casts of weights from a graph into the bodies that use them (Falcon, checkpointed).

        top:  Wt = getattr(W, "T"); hop(body, x, Wt)     ->  top:  hop(body, x, W)
        body: placeholder wt                             ->  body: placeholder w; wt = getattr(w, "T")

    Refused: calls of one body that disagree about the view.
    """
    count = 0
    for placeholder in scope.placeholders():
        calls = [(parent, node, operand_index(node, placeholder, scope)) for parent, node in scope.calls]
        weights = [weight_of(node.args[position], node) for _, node, position in calls]
        found = [weight for weight in weights if isinstance(weight, Weight)]
        moved = any(w.placeholder is not node.args[at] for w, (_, node, at) in zip(found, calls, strict=False))
        if not placeholder.users or len(found) != len(calls) or not moved or len({w.transposed for w in found}) != 1:
            continue
        if all(is_parameter(parent, w.placeholder) for (parent, _, _), w in zip(calls, found, strict=True)):
            _sink(placeholder, [(node, at, w) for (_, node, at), w in zip(calls, found, strict=True)])
            count += 1
    return count


def _sink(placeholder: fx.Node, calls: list[tuple[fx.Node, int, Weight]]) -> None:
    users = list(placeholder.users)
    old_value = fake(placeholder)
    assert old_value is not None
    for node, position, weight in calls:
        old = node.args[position]
        assert isinstance(old, fx.Node)
        node.update_arg(position, weight.placeholder)
        placeholder.meta["example_value"] = fake(weight.placeholder)
        erase_unused(old)
    emit = Emitter(users[0], getattr(old_value, "fake_mode", None), "sink_weight_views")
    with placeholder.graph.inserting_before(min(users)):
        view = _operand(Weight(placeholder, calls[0][2].transposed), emit)
        if view.meta["example_value"].dtype != old_value.dtype:
            view = emit.method("to", view, old_value.dtype)
    for user in users:
        user.replace_input_with(placeholder, view)
