"""Linear layers in canonical form. `linear_rules.py` brings every spelling to it.

Canonical: `linear(x, W, b)` with W a placeholder [out, in], or `linear(x, getattr(W, "T"), b)` with W [in, out].
x [.., in], result [.., out], b [out] or None.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx, nn

from s24compile.passes.effects import grad_is_off, written_by
from s24compile.passes.pointwise import subject
from s24compile.passes.provenance import is_buffer
from s24compile.passes.scope import (
    Scope,
    fake,
    known_fake,
    operand_index,
    origins,
    same_place,
    same_shape,
    storage_of,
)
from s24compile.passes.spelling import CASTS, general_name, spell

COPIES = CASTS | {"contiguous", "clone"}
"""Ops whose result holds the numbers of their operand, rounded perhaps."""
_LIMIT = 64
"""Nodes that a weight may be computed by; weight_norm and merged adapters take up to ten."""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """Why a rule that knows a node leaves it as it is."""

    sentence: str
    """For the report: "its weight is ..."."""
    node: fx.Node
    whole: bool = False
    """No layer with this linear can be taken: which of its dims are features, no rule can tell."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """What the weight operand of a matmul is: a placeholder, seen through transposes and casts."""

    placeholder: fx.Node
    transposed: bool
    """The operand is the transpose of the placeholder."""


@dataclasses.dataclass(eq=False)
class Linear:
    """One linear layer in canonical form, or something that only acts like one."""

    scope: Scope
    node: fx.Node
    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    layout: str
    """"out_in" or "in_out": how the placeholder stores the weight."""
    out_features: int
    in_features: int
    foreign: str = ""
    """Why this linear stays dense wherever it is: its weight is no plain parameter, its product no plain one."""
    unsupported: str = ""
    """Why no layer with it can be taken: it is no F.linear at all (einsum, 1x1 convolution)."""
    parameters: tuple[fx.Node, ...] = ()
    """Where `weight` is None: the top-level placeholders that its weight is computed from."""

    @property
    def weight_inputs(self) -> list[fx.Node]:
        """The top-level placeholders of its weight, one per way into its body."""
        return list(self.parameters) if self.weight is None else origins(self.scope, self.weight)


def weight_of(operand: object, user: fx.Node | None = None) -> Weight | Refusal | None:
    """Follows the weight operand of `user` up to its 2-D placeholder; None if it is no 2-D tensor, or no node.

    Refused: one that is computed by more than transposes and casts; one that is rounded more than the user's result is
    (fake quantisation); one that a no_grad keeps the gradient of the user's product from.
    """
    transposed = False
    while isinstance(operand, fx.Node) and operand.op != "placeholder":
        if user is not None and grad_is_off(operand) != grad_is_off(user):
            return Refusal("its weight is read under another grad mode than its product runs in", operand)
        step = _seen_through(operand)
        if step is None:
            made_by = f"`{general_name(operand)}` (weight_norm, a merged adapter, ...)"
            return Refusal(f"its weight is computed in the graph by {made_by}, not a parameter", operand)
        before, after = known_fake(step[0]).dtype, known_fake(operand).dtype
        if before != after and _rounds(after, fake(user)):
            rounded = f"rounded to {str(after).removeprefix('torch.')} before the product (fake quantisation)"
            return Refusal(f"its weight is {rounded}", operand)
        operand, turned = step
        transposed ^= turned
    value = fake(operand)
    if value is None or value.dim() != 2:
        return None
    assert isinstance(operand, fx.Node)
    return Weight(operand, transposed)


def is_weight_view(node: fx.Node, weight: fx.Node) -> bool:
    """Whether a node is only the weight in another layout, dtype or place in memory."""
    step = _seen_through(node)
    return step is not None and step[0] is weight


def _seen_through(node: fx.Node) -> tuple[fx.Node, bool] | None:
    """(what a node is another form of, whether transposed), where it is one: a cast, a copy, a view of all of it."""
    source = subject(node)
    before, after = fake(source), fake(node)
    if source is None or before is None or after is None or before.device != after.device or written_by(node) != []:
        return None
    if before.dim() != 2 or after.dim() != 2 or before.requires_grad > after.requires_grad or before.is_complex():
        return None
    if general_name(node) in COPIES:
        return (source, False) if same_shape(before, after) else None
    if before.dtype != after.dtype or storage_of(before) != storage_of(after):
        return None
    if same_place(before, after):
        return source, False
    return (source, True) if same_place(before.t(), after) else None


def _rounds(cast: torch.dtype, result: torch.Tensor | None) -> bool:
    """Whether a cast of the weight loses what the product's dtype holds."""
    if not cast.is_floating_point or cast.itemsize < 2:
        return True
    return result is not None and cast != result.dtype and cast.itemsize <= result.dtype.itemsize


def is_parameter(scope: Scope, placeholder: fx.Node) -> bool:
    """Whether a placeholder is an nn.Parameter, on every way into this scope."""
    tops = origins(scope, placeholder)
    return bool(tops) and all(_is_parameter(top) for top in tops)


def parameters_of(scope: Scope, node: fx.Node) -> tuple[fx.Node, ...]:
    """The parameters that a tensor is computed from, as top-level placeholders; () if from other inputs too."""
    found: list[fx.Node] = []
    waiting, seen = [(scope, node)], set[fx.Node]()
    while waiting:
        where, at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        if at.op != "placeholder":
            waiting += [(where, operand) for operand in at.all_input_nodes]
        elif where.calls:
            operands = [(parent, call.args[operand_index(call, at, where)]) for parent, call in where.calls]
            waiting += [(parent, operand) for parent, operand in operands if isinstance(operand, fx.Node)]
        elif _is_parameter(at):
            found.append(at)
        elif fake(at) is not None and not is_buffer(at):
            return ()
        if len(seen) > _LIMIT:
            return ()
    return tuple(sorted(found))


def _is_parameter(top: fx.Node) -> bool:
    return top.op == "placeholder" and (top.type is nn.Parameter or isinstance(fake(top), nn.Parameter))


def as_linear(scope: Scope, node: fx.Node) -> Linear | None:
    """Reads a canonical linear (or one whose weight cannot be taken, then with a reason)."""
    op = spell(node)
    if op is None or op.name != "linear" or fake(node) is None or not isinstance(op.args[0], fx.Node):
        return None
    x, operand, bias = op.args
    shape = fake(operand)
    if shape is None or shape.dim() != 2:
        return None
    weight = weight_of(operand, node)
    linear = Linear(
        scope, node, x, None, bias if isinstance(bias, fx.Node) else None, "out_in", int(shape.shape[0]),
        int(shape.shape[1]),
    )  # fmt: skip
    if isinstance(weight, Weight) and is_parameter(scope, weight.placeholder):
        linear.weight = weight.placeholder
        linear.layout = "in_out" if weight.transposed else "out_in"
        return linear
    linear.parameters = parameters_of(scope, operand)
    linear.foreign = "its weight is a plain tensor input of the graph, not an nn.Parameter"
    if isinstance(weight, Refusal):
        linear.foreign = weight.sentence
    elif linear.parameters:  # in a body: what arrives there is made outside
        linear.foreign = "its weight is computed outside of the body that multiplies by it"
    return linear


def as_refused(scope: Scope, refusal: Refusal) -> Linear | None:
    """Reads a product that a rule refused: by a parameter, or by what is computed from parameters alone."""
    node = refusal.node
    operands = [operand for operand in node.all_input_nodes if fake(operand) is not None]
    by_parameters = {o: found for o in operands if known_fake(o).dim() > 1 and (found := parameters_of(scope, o))}
    # A bias is the first operand, a weight a later one; what is multiplied by it is the first that is neither.
    weight = next(reversed(by_parameters), None)
    x = next((o for o in operands if o not in by_parameters and known_fake(o).dim() > 1), operands[0])
    if weight is None:
        return None
    rows, cols = (int(size) for size in known_fake(weight).shape[:2])
    if cols != rows == known_fake(x).shape[-1]:  # its transpose
        rows, cols = cols, rows
    linear = Linear(scope, node, x, None, None, "out_in", rows, cols, parameters=by_parameters[weight])
    linear.unsupported, linear.foreign = (refusal.sentence, "") if refusal.whole else ("", refusal.sentence)
    return linear
