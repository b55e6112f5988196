"""Last pass: the invariants of a rewritten graph, written once. In tests it runs after every pass.

A failure is a bug of a pass, never of the user: it raises, naming the node, before anything is compiled.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.errors import LoweringError
from s24compile.passes.effects import is_written
from s24compile.passes.scope import FIRST_OPERAND, Scope, fake, hop_name, storage_of
from s24compile.passes.state import State

ACCEPTED = "this is a bug of s24compile; exclude=<the module's path> or S24_FUEL leaves the layer dense meanwhile"
LEGAL = frozenset({"linear", "scaled_linear", "scaled_dense_linear", "act", "glu", "activation_layer"})
"""The s24 ops that passes may put into a graph."""


def verify(state: State) -> int:
    """Checks every graph; returns how many nodes were looked at.

    s24 ops that were there before are not ours to check: the user's calls of `s24compile.ops`, and all of a backward
    graph that compiled autograd captures.

    Raises:
        LoweringError: an invariant does not hold.
    """
    count = 0
    for scope in state.scopes:
        try:
            scope.graph.lint()
        except RuntimeError as error:
            raise _broken("the graph", str(error)) from error
        _check_placeholders(scope)
        for node in scope.graph.nodes:
            _check_node(scope, node, node in state.given)
            count += 1
    for value, node in state.replaced:
        _check_replaced(value, node)
    for value, node in state.joined:
        _check_replaced(value, node, strides=False)
    requested = [name for operand in state.operands for name in operand.placeholders]
    added = [node.name for node in state.scopes[0].placeholders()][-len(requested) :] if requested else []
    if requested != added:
        raise _broken("the graph", f"its last placeholders are {added}, but the operands are {requested}")
    return count


def _check_placeholders(scope: Scope) -> None:
    seen_other = ""
    for node in scope.graph.nodes:
        if node.op != "placeholder":
            seen_other = seen_other or node.name
        elif seen_other:
            raise _broken(node.name, f"it is a placeholder after the node {seen_other}")
        elif not scope.calls and "s24" in node.meta and "tensor_dict" not in node.meta:
            raise _broken(node.name, "it is an added input without tensor_dict, so not static for CUDA graphs")


def _check_node(scope: Scope, node: fx.Node, given: bool) -> None:
    target = str(node.target)
    made_here = "s24" in node.meta
    if made_here and node.meta.get("example_value") is None:
        raise _broken(node.name, "it has no fake value")
    if target.startswith("s24.") and not given:
        name = target.split(".")[1]
        if name not in LEGAL:
            raise _broken(node.name, f"{target} may not appear in a graph before AOTAutograd")
        if not made_here or "rule" not in node.meta["s24"]:
            raise _broken(node.name, "it does not say which rule made it")
        _check_fresh(node)
    child = scope.children.get(node)
    if child is not None:
        passed = len(node.args) - FIRST_OPERAND[str(hop_name(node))]
        if passed != len(child.placeholders()):
            raise _broken(node.name, f"it passes {passed} operands to a body of {len(child.placeholders())}")


def _check_fresh(node: fx.Node) -> None:
    """An s24 op's result is a new tensor: users mutate it in place (Falcon adds the residual into it)."""
    value = fake(node)
    for operand in node.all_input_nodes:
        other = fake(operand)
        if value is not None and other is not None and storage_of(value) == storage_of(other):
            raise _broken(node.name, f"its result aliases its operand {operand.name}")


def _check_replaced(value: torch.Tensor, node: fx.Node, *, strides: bool = True) -> None:
    new = fake(node)
    grad = any(operand.requires_grad for n in node.all_input_nodes if (operand := fake(n)) is not None)
    difference = "it has no fake value" if new is None else _difference(value, new, strides, grad)
    # An in-place op (`unsqueeze_`, a sum with what has a gradient) has changed the fake value of the old node, too.
    if difference and (new is None or not is_written(node)):
        raise _broken(node.name, difference)


def _difference(old: torch.Tensor, new: torch.Tensor, strides: bool, grad: bool) -> str:
    same = statically_known_true
    if old.dim() != new.dim() or not all(same(a == b) for a, b in zip(old.shape, new.shape, strict=True)):
        return f"its shape is {tuple(new.shape)}, of the node it replaces {tuple(old.shape)}"
    for what, before, found in (
        ("dtype", old.dtype, new.dtype),
        ("device", old.device, new.device),
        # Of operands without gradient there is none to lose, whatever was added in place since.
        ("requires_grad", old.requires_grad and (grad or new.requires_grad), new.requires_grad),
    ):
        if before != found:
            return f"its {what} is {found}, of the node it replaces {before}"
    pairs = zip(old.shape, old.stride(), new.stride(), strict=True)
    if strides and not all(same(size == 1) or same(a == b) for size, a, b in pairs):
        return f"its strides are {new.stride()}, of the node it replaces {old.stride()}"
    return ""


def _broken(node: str, found: str) -> LoweringError:
    return LoweringError(node=node, found=found, accepted=ACCEPTED)
