"""First pass: one spelling for each linear and for the halves of a gate, and no writes to private activations.

Rules are tried on each node in graph order, so operands are canonical before the nodes that use them. Only what
comes out of a linear by a parameter is touched; attention, norms and the rest stay as Dynamo captured them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import fx

from s24compile.passes import float8, gates, linear_rules
from s24compile.passes.effects import undisturbed, written_by
from s24compile.passes.emit import Emitter, erase_unused, replace_node
from s24compile.passes.inplace import functional_form
from s24compile.passes.linears import Refusal, Weight, is_parameter, weight_of
from s24compile.passes.pointwise import is_pointwise
from s24compile.passes.scope import Scope, hop_name
from s24compile.passes.spelling import ALIASING, Op, general_name, spell
from s24compile.passes.state import State
from s24compile.torch_internals.graphs import is_erased


@dataclasses.dataclass(frozen=True)
class Spelling:
    """A rule: where it is tried, and the rewrite that checks and builds. Its docstring is the specification."""

    name: str
    roots: frozenset[str]
    """Canonical op names of the nodes it is tried on."""
    apply: Callable[[Scope, fx.Node, Emitter], fx.Node | Refusal | None]
    reads: bool = True
    """False: it only spells a view in another way, which is the same whatever was written in between."""


def _spelled(
    rewrite: Callable[[Scope, fx.Node, Op, Emitter], fx.Node | Refusal | None],
) -> Callable[[Scope, fx.Node, Emitter], fx.Node | Refusal | None]:
    """Hands a rule the op that a node is; leaves nodes alone whose arguments no spelling of that name takes."""

    def apply(scope: Scope, node: fx.Node, emit: Emitter) -> fx.Node | Refusal | None:
        op = spell(node)
        return None if op is None else rewrite(scope, node, op, emit)

    return apply


SPELLINGS = (
    Spelling("type_as", frozenset({"type_as"}), linear_rules.type_as, reads=False),
    Spelling("l1", frozenset({"linear"}), _spelled(linear_rules.l1)),
    Spelling("conv1d", frozenset({"addmm"}), _spelled(linear_rules.conv1d)),
    Spelling("matmul", frozenset({"matmul"}), _spelled(linear_rules.matmul)),
    Spelling("product", linear_rules.PRODUCTS, linear_rules.product),
    Spelling("float8", float8.ROOTS, float8.converted),
    Spelling("late_bias", frozenset({"add"}), _spelled(linear_rules.late_bias)),
    Spelling("flattened", frozenset({"view", "reshape"}), _spelled(linear_rules.flattened)),
    Spelling(
        gates.HALF,
        frozenset({"getitem", "narrow", "select"}),
        lambda _, node, emit: gates.half(node, emit),
        reads=False,
    ),
)
_BY_ROOT = {root: [rule for rule in SPELLINGS if root in rule.roots] for rule in SPELLINGS for root in rule.roots}


def canonicalize(state: State) -> int:
    """Applies `SPELLINGS` to every graph, weight views sunk into bodies first; returns how many nodes were replaced."""
    count = 0
    for scope in state.scopes:
        count += linear_rules.sink_weight_views(scope)
        for node in list(scope.graph.nodes):
            while not is_erased(node):
                replacement = _functional(node, state) or _canonical(scope, node, state)
                if replacement is None:
                    break
                replace_node(node, replacement)
                node = replacement
                count += 1
        count += gates.uncut(scope.graph, state.fake_mode)
    return count


def _canonical(scope: Scope, node: fx.Node, state: State) -> fx.Node | None:
    for rule in _BY_ROOT.get(general_name(node), ()):
        emit = Emitter(node, state.fake_mode, rule.name)
        with scope.graph.inserting_before(node):
            replacement = rule.apply(scope, node, emit)
        if isinstance(replacement, Refusal):
            state.refusals[node] = replacement
            return None
        if replacement is None:
            continue
        if not rule.reads or undisturbed(_replaced(scope, node, emit.made)):
            return replacement
        erase_unused(replacement)
    return None


def _replaced(scope: Scope, node: fx.Node, made: list[fx.Node]) -> set[fx.Node]:
    """The nodes that `made` stand for: `node`, and what computes it from the operands that `made` start at."""
    leaves = {operand for new in made for operand in new.all_input_nodes} - set(made)
    gone, stack = {node}, [node]
    while stack:
        for operand in stack.pop().all_input_nodes:
            if operand.op in ("placeholder", "get_attr") or operand in leaves or operand in gone:
                continue
            weight = weight_of(operand)
            if isinstance(weight, Weight) and is_parameter(scope, weight.placeholder):
                continue  # nobody writes to weights inside a graph, and their views may be far away
            gone.add(operand)
            stack.append(operand)
    return gone


def _functional(node: fx.Node, state: State) -> fx.Node | None:
    if not written_by(node) or not _comes_from_linear(node):
        return None
    with node.graph.inserting_before(node):
        return functional_form(node, Emitter(node, state.fake_mode, "functional"))


def _comes_from_linear(node: fx.Node, depth: int = 12) -> bool:
    """Whether a chain of elementwise ops and views leads from a linear to this node's first tensor operands."""
    stack, seen = [(node, depth)], {node}
    while stack:
        at, left = stack.pop()
        for operand in at.all_input_nodes:
            name = general_name(operand)
            if name in ("linear", "addmm", "matmul"):
                return True
            passes_on = name in ALIASING or is_pointwise(operand) or hop_name(operand) == "autograd_function_apply"
            if left and operand not in seen and passes_on:
                seen.add(operand)
                stack.append((operand, left - 1))
    return False
