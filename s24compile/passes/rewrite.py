"""Fourth pass: puts the s24 ops in place of the linears and gates that the policy took. T tokens, D width, F hidden."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import torch
from torch import fx

import s24compile.kernels.ops  # noqa: F401  # registers torch.ops.s24
from s24compile.graphs.marks import mark_of
from s24compile.kernels.activations import DENSE
from s24compile.passes.activations import Activation, Gating, hold_constants
from s24compile.passes.effects import in_one_mode, undisturbed
from s24compile.passes.emit import Emitter, erase_unused
from s24compile.passes.linears import Linear
from s24compile.passes.match import Gate, Match
from s24compile.passes.operands import Operands, Wanted
from s24compile.passes.provenance import common_path, module_path
from s24compile.passes.results import add_results
from s24compile.passes.rewrite_hidden import rewrite_hidden
from s24compile.passes.scope import fake, hop_name, known_fake
from s24compile.passes.state import State
from s24compile.torch_internals.graphs import is_erased


@dataclasses.dataclass(frozen=True)
class Unit:
    """Linears that become one `s24.linear`: a single one, or gate and up stacked."""

    linears: tuple[Linear, ...]
    wanted: Wanted
    needs_transpose: bool


def rewrite(state: State) -> int:
    """Rewrites every taken linear; returns how many matmuls are 2:4 now."""
    plan = [(match, _units(match, state)) for match in state.matches if match.taken and match.hidden is None]
    operands = Operands(state, [(m.scope, u.wanted, u.needs_transpose) for m, units in plan for u in units])
    for match, _ in plan:  # before their linears, which they name
        if match.activation is not None and _is_op(match.activation):
            _rewrite_activation(match, match.activation, state)
    for match, units in plan:
        for unit in units:
            _rewrite_unit(match, unit, operands, state)
            state.count += len(unit.linears)
    for match in state.matches:
        if match.taken and match.hidden is not None:
            state.count += rewrite_hidden(match, state)
    add_results(state.graph_module.graph, state.results)
    return state.count


def _units(match: Match, state: State) -> list[Unit]:
    joined = match.taken[:2] if match.rule == "gated" and _can_join(match, state) else []
    singles = [linear for linear in match.taken if linear not in joined]
    groups = ([tuple(joined)] if joined else []) + [(linear,) for linear in singles]
    return [_unit(group, match, state) for group in groups]


def _unit(linears: tuple[Linear, ...], match: Match, state: State) -> Unit:
    first, scope = linears[0], match.scope
    values, x = [fake(linear.node) for linear in linears], fake(first.node.args[0])
    value = values[0]
    assert value is not None
    mark = mark_of(first.node)
    options = state.options_for(mark)
    gated = options.gated_format if _glu_in_epilogue(linears, match) else ""
    weights = tuple(n.weight for n in linears if n.weight is not None)
    dtype = torch.float8_e4m3fn if options.eight_bit else value.dtype
    wanted = Wanted(weights, dtype, first.layout, gated or options.format, mark)
    # A result that needs no gradient has no backward; an x that needs none has no dX. The body of invoke_subgraph was
    # traced for its first call only, so there the grad mode decides.
    if any(hop_name(call) == "invoke_subgraph" for _, call in scope.calls):
        has_dx = torch.is_grad_enabled()
    else:
        has_dx = x is None or (x.requires_grad and any(v is None or v.requires_grad for v in values))
    return Unit(linears, wanted, has_dx and options.dx == "sparse")


def _feeds_gate(linears: tuple[Linear, ...], match: Match) -> bool:
    """Whether these linears make both halves that a gate combines at once, so that one `s24.glu` reads their result."""
    gate = match.gate
    whole = gate is not None and (len(linears) == 2 or gate.fused is linears[0].node)
    return whole and gate is not None and gate.direct and _is_op(gate.act)


def _glu_in_epilogue(linears: tuple[Linear, ...], match: Match) -> bool:
    """Whether the GEMM of these linears could compute the GLU: nothing in between, and halves of whole 8 rows."""
    rows = sum(linear.out_features for linear in linears)
    return _feeds_gate(linears, match) and rows % 16 == 0 and all(linear.node.args[2] is None for linear in linears)


def _can_join(match: Match, state: State) -> bool:
    """Whether gate and up can be one GEMM: both taken, same x, dtypes, layout and options, and at one moment."""
    gate, up = match.linears[:2]
    if gate not in match.taken or up not in match.taken:
        return False
    a, b = fake(gate.weight), fake(up.weight)
    va, vb = fake(gate.node), fake(up.node)
    if a is None or b is None or va is None or vb is None or (a.dtype, va.dtype) != (b.dtype, vb.dtype):
        return False
    if va.requires_grad != vb.requires_grad:
        return False
    if (
        gate.layout != up.layout
        or gate.out_features != up.out_features
        or gate.weight is up.weight
        or mark_of(gate.node) != mark_of(up.node)
    ):
        return False
    biases = [n.bias for n in (gate, up) if n.bias is not None]
    if len({known_fake(bias).dtype for bias in biases}) > 1 or any(bias.op != "placeholder" for bias in biases):
        return False
    # One that has no gradient, by a no_grad behind it, would get zeros beside the other.
    return undisturbed((gate.node, up.node)) and in_one_mode(match.between)


def _rewrite_unit(match: Match, unit: Unit, operands: Operands, state: State) -> None:
    scope = match.scope
    nodes = sorted(linear.node for linear in unit.linears)
    packed = operands.provide(scope, unit.wanted)
    path = common_path([module_path(scope, n.node, n.weight) for n in match.linears])
    emit = Emitter(nodes[0], state.fake_mode, match.rule, path)
    with scope.graph.inserting_before(nodes[0]):
        z = _sparse_linear(unit, packed, emit, state)
        if len(unit.linears) == 2:
            _split_joined(unit, z, emit, state)
    feeds_gate = _feeds_gate(unit.linears, match)
    if len(unit.linears) == 1:
        replace(unit.linears[0].node, z, state)
    if match.gate is not None and feeds_gate:
        _rewrite_gate(match.gate, z, match.rule, path, state)


def _sparse_linear(unit: Unit, packed: tuple[fx.Node, ...], emit: Emitter, state: State) -> fx.Node:
    """The s24.linear of one unit, with x in the compute dtype; in eight bits the first result of s24.scaled_linear."""
    options = state.options_for(unit.wanted.decorated)
    x = unit.linears[0].node.args[0]  # not `linear.x`: an earlier layer's result may have been replaced
    value, dtype = fake(x), known_fake(unit.linears[0].node).dtype
    assert value is not None
    if value.dtype != dtype:
        x = emit.method("to", x, dtype)
    weights, bias = list(unit.wanted.weights), _bias(unit, emit)
    # Another use of the operand may need its transpose where this one does not.
    own = 5 if options.eight_bit else 2
    operand, transposed = packed[:own], packed[own:] if unit.needs_transpose else (None, None)
    how = unit.wanted.format, unit.wanted.layout, options.dx, options.dw_of(unit.linears[0].in_features)
    if not options.eight_bit:
        return emit.function(torch.ops.s24.linear.default, x, weights, *operand, *transposed, bias, *how)
    *operands, probe_x, probe_dz = operand
    probes = [probe_x, probe_dz] if _has_backward(unit) else []
    several = emit.function(
        torch.ops.s24.scaled_linear.default, x, weights, *operands, probes, *transposed, bias, dtype, *how
    )
    return emit.function(operator.getitem, several, 0)


def _has_backward(unit: Unit) -> bool:
    """Whether its result has a gradient; probes would give it one."""
    first = unit.linears[0]
    if not first.scope.calls:
        return known_fake(first.node).requires_grad
    # The values of a body do not say.
    return any(known_fake(top).requires_grad for linear in unit.linears for top in linear.weight_inputs)


def _bias(unit: Unit, emit: Emitter) -> Any:
    biases = [linear.node.args[2] for linear in unit.linears]
    given = next((bias for bias in biases if bias is not None), None)
    if given is None or len(biases) == 1:
        return given
    whole = [
        bias if bias is not None else emit.method("new_zeros", given, (linear.out_features,))
        for bias, linear in zip(biases, unit.linears, strict=True)
    ]
    return emit.function(torch.cat, whole)


def _split_joined(unit: Unit, z: fx.Node, emit: Emitter, state: State) -> None:
    """Gives the users of gate and up their halves of z."""
    chunk = emit.method("chunk", z, 2, -1)
    halves = [emit.function(operator.getitem, chunk, index) for index in range(2)]
    # Erasing moves the insertion point away with the node, so only now.
    for half, linear in zip(halves, unit.linears, strict=True):
        state.joined.append((known_fake(linear.node), half))
        linear.node.replace_all_uses_with(half)
        erase_unused(linear.node)


def _rewrite_gate(gate: Gate, z: fx.Node, rule: str, path: str, state: State) -> None:
    """p = mul(silu(c[0]), c[1])  ->  p = s24.glu(z, "silu", "first"); the halves lose their last users and go."""
    emit = Emitter(gate.product, state.fake_mode, rule, path)
    with gate.product.graph.inserting_before(gate.product):
        p = _like(gate.product, emit.function(torch.ops.s24.glu.default, z, gate.act.name, gate.order), emit)
    _replace_expression(gate.act, p, state)


def _rewrite_activation(match: Match, activation: Activation, state: State) -> None:
    """a = gelu(h)  ->  a = s24.act(h, "gelu"), which lowering fuses with the GEMM in front of it."""
    path = common_path([module_path(match.scope, linear.node, linear.weight) for linear in match.linears])
    emit = Emitter(activation.node, state.fake_mode, match.rule, path)
    with match.scope.graph.inserting_before(activation.node):
        op = emit.function(torch.ops.s24.act.default, activation.h, activation.name)
        a = _like(activation.node, op, emit)
    _replace_expression(activation, a, state)


def _is_op(act: Activation | Gating) -> bool:
    """Whether s24.act and s24.glu compute it, value and gradient."""
    return act.name in DENSE and act.exact


def _like(old: fx.Node, new: fx.Node, emit: Emitter) -> fx.Node:
    """`new` in the dtype of what it stands for: on a GPU autocast makes GPT-2's gelu_new fp32, of bf16 projections."""
    dtype = known_fake(old).dtype
    return new if known_fake(new).dtype == dtype else emit.method("to", new, dtype)


def _replace_expression(act: Activation | Gating, new: fx.Node, state: State) -> None:
    """Puts a node in the place of an expression and erases what computed it."""
    hold_constants(act)
    replace(act.nodes[0], new, state)
    for node in act.nodes:
        if not is_erased(node) and not node.users:
            erase_unused(node)


def replace(old: fx.Node, new: fx.Node, state: State) -> None:
    """Lets one node stand for another, which goes if nothing else needs it; verify compares the two."""
    value = fake(old)
    assert value is not None
    state.replaced.append((value, new))
    old.replace_all_uses_with(new)
    erase_unused(old)
