"""Linear layers in canonical form. `linear_rules.py` brings every spelling to it.

Canonical: `linear(x, W, b)` with W a placeholder [out, in], or `linear(x, getattr(W, "T"), b)` with W [in, out].
x [.., in], result [.., out], b [out] or None.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import fx, nn

from s24compile.passes.effects import grad_is_off
from s24compile.passes.scope import Scope, fake, origins
from s24compile.passes.spelling import CASTS, general_name, spell


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
    """Why this linear stays dense wherever it is: its weight is no plain parameter."""
    unsupported: str = ""
    """Why no layer with it can be taken: it is no F.linear at all (einsum, 1x1 convolution)."""

    @property
    def weight_inputs(self) -> list[fx.Node]:
        """The top-level placeholders of its weight, one per way into its body."""
        return origins(self.scope, self.weight) if self.weight is not None else []


def weight_of(operand: object, user: fx.Node | None = None) -> Weight | None:
    """Follows the weight operand of `user` up to its 2-D placeholder; None if it is computed in another way.

    That is, by more than transposes and casts: one that rounds more than the user's result is (fake quantisation), or
    one under no_grad, which keeps the gradient of the user's product from the weight.
    """
    transposed = False
    while isinstance(operand, fx.Node) and operand.op != "placeholder":
        op = spell(operand)
        if op is None or op.inplace or (user is not None and grad_is_off(operand) != grad_is_off(user)):
            return None
        if op.name in CASTS or op.name == "contiguous":
            before, after = fake(op.args[0]), fake(operand)
            if before is None or after is None or before.device != after.device or _rounds(after, fake(user)):
                return None
        elif _is_transpose(op.name, op.args):
            transposed = not transposed
        else:
            return None
        operand = op.args[0]
    value = fake(operand)
    if value is None or value.dim() != 2:
        return None
    assert isinstance(operand, fx.Node)
    return Weight(operand, transposed)


def _rounds(cast: torch.Tensor, result: torch.Tensor | None) -> bool:
    """Whether a cast of the weight loses what the product's dtype holds."""
    if not cast.is_floating_point() or cast.dtype.itemsize < 2:
        return True
    return result is not None and cast.dtype != result.dtype and cast.dtype.itemsize <= result.dtype.itemsize


def _is_transpose(name: str, args: tuple[Any, ...]) -> bool:
    """Whether an op on a 2-D tensor is its transpose, in any spelling."""
    if name == "t":
        return True
    if name == "getattr":
        return args[1] in ("T", "mT")
    return (
        name in ("transpose", "permute")
        and {a % 2 for a in args[1:] if isinstance(a, int)} == {0, 1}
        and (name == "transpose" or args[1] % 2 == 1)
    )


def is_parameter(scope: Scope, placeholder: fx.Node) -> bool:
    """Whether a placeholder is an nn.Parameter, on every way into this scope."""
    tops = origins(scope, placeholder)
    return bool(tops) and all(
        top.op == "placeholder" and (top.type is nn.Parameter or isinstance(fake(top), nn.Parameter)) for top in tops
    )


def as_linear(scope: Scope, node: fx.Node) -> Linear | None:
    """Reads a canonical linear (or one whose weight cannot be taken, then with a reason)."""
    op = spell(node)
    value = fake(node)
    if op is None or op.name != "linear" or value is None or not isinstance(op.args[0], fx.Node):
        return None
    x, operand, bias = op.args
    shape = fake(operand)
    if shape is None or shape.dim() != 2:
        return None
    weight = weight_of(operand, node)
    linear = Linear(
        scope, node, x, weight.placeholder if weight else None, bias if isinstance(bias, fx.Node) else None,
        "in_out" if weight and weight.transposed else "out_in", int(shape.shape[0]), int(shape.shape[1]),
    )  # fmt: skip
    if weight is None:
        made_by = general_name(operand)
        linear.foreign = (
            f"its weight is computed in the graph by `{made_by}` (weight_norm, a merged adapter, ...), not a parameter"
        )
    elif not is_parameter(scope, weight.placeholder):
        linear.foreign = "its weight is a plain tensor input of the graph, not an nn.Parameter"
    return linear
