"""Third pass: decides which of the found linears are rewritten, and says why for each of the others.

Refusals are of two kinds. Of a whole site: its structure, the graph (DDP), the decorator's scope, profit, fuel.
Of one linear, the rest of its layer being taken: targets, path regexes, dims, dtype, phase, other uses of its weight.
"""

from __future__ import annotations

import math
import re

import torch
from torch import fx
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from s24compile.config import Config
from s24compile.graphs.layer import Layer
from s24compile.graphs.marks import mark_of
from s24compile.passes.linears import Linear, is_weight_view
from s24compile.passes.match import Match
from s24compile.passes.outside import DTENSOR_SENTENCE
from s24compile.passes.provenance import module_path, parameter_name, user_line
from s24compile.passes.scope import Scope, fake, uses
from s24compile.passes.sites import site_of
from s24compile.passes.spelling import general_name
from s24compile.passes.state import State
from s24compile.report import Site
from s24compile.weights.sharding import FSDP_SENTENCE

DDP_SENTENCE = (
    "DDP's optimizer cut this graph at its gradient buckets, usually between an activation and its last projection; "
    'set torch._dynamo.config.optimize_ddp = "python_reducer" to keep layers whole'
)
DECORATED_SENTENCE = "another module of this graph is decorated with sparse_ffn, and then only decorated ones are taken"
TRANSFORM_SENTENCE = "it runs inside a transform of torch.func, and the 2:4 ops have no rules for those"
DENSE_PHASE_SENTENCE = "it is in its dense phase"
FUEL_SENTENCE = "out of fuel: S24_FUEL={fuel} allows no further rewrite"


def decide(state: State) -> int:
    """Fills `taken` of every match and `state.sites`; returns how many linears will be rewritten."""
    decorated = any(mark_of(node) is not None for scope in state.scopes for node in scope.graph.nodes)
    for match in state.matches:
        match.refusal = match.refusal or _refuse_site(match, state, decorated)
        if not match.refusal:
            found = {linear: _refuse_linear(linear, match, state, decorated) for linear in match.linears}
            match.stays = {linear: why for linear, why in found.items() if why}
        if not match.refusal and len(match.stays) < len(match.linears):
            match.refusal = _refuse_slow(match, state)
    _refuse_shared_weights(state)
    fuel = state.fuel
    claimed: set[fx.Node] = set()
    for match in state.matches:
        free = [n for n in match.linears if n not in match.stays and n.node not in claimed]
        if match.refusal or not free:
            continue
        if fuel == 0:
            match.refusal = FUEL_SENTENCE.format(fuel=state.fuel)
            continue
        fuel = None if fuel is None else fuel - 1
        match.taken = free
        claimed.update(linear.node for linear in free)
    for match in state.matches:
        # The last linear of one layer can be the first of the next, which then has nothing to say of it.
        if match.taken:
            match.stays = {linear: why for linear, why in match.stays.items() if linear.node not in claimed}
    state.sites = [site_of(match, state) for match in state.matches]
    if state.cut_reason and not state.matches:
        state.sites.append(Site("", "unknown", "", "refused", state.cut_reason))
    return len(claimed)


def _refuse_site(match: Match, state: State, decorated: bool) -> str:
    if state.cut_reason:
        return state.cut_reason
    if decorated and not any(mark_of(linear.node) is not None for linear in match.linears):
        return DECORATED_SENTENCE
    return ""


def _refuse_slow(match: Match, state: State) -> str:
    """What the cost model says; a decorated module is not asked about."""
    *firsts, last = match.linears
    first = match.linears[0]
    value = fake(first.node)
    if value is None or any(mark_of(linear.node) is not None for linear in match.linears):
        return ""
    hidden = last.in_features if last is not first else first.out_features
    tokens = [_hint(size) for size in value.shape[:-1]]
    count = None if any(size is None for size in tokens) else math.prod(size for size in tokens if size is not None)
    # A phase passes; what was worth while before it is so after it.
    never = [linear for linear, why in match.stays.items() if why != DENSE_PHASE_SENTENCE]
    options = state.options_for(None)
    layer = Layer(
        first.in_features,
        hidden,
        match.gate is not None,
        count,
        value.dtype,
        first=not any(linear in never for linear in firsts or [last]),
        last=last not in never,
        dx=options.dx,
        dw=(options.dw_of(first.in_features), options.dw_of(last.in_features)),
    )
    return state.profitable(layer) or ""


def _hint(size: int | torch.SymInt) -> int | None:
    """A size as a number without a guard on it."""
    return size if isinstance(size, int) else size.node.hint


def _refuse_linear(linear: Linear, match: Match, state: State, decorated: bool) -> str:
    """A sentence if this linear cannot be, or shall not be, 2:4."""
    if linear.foreign or linear.unsupported:
        return linear.foreign or linear.unsupported
    assert linear.weight is not None
    tops = linear.weight_inputs
    mark = mark_of(linear.node)
    if any(top.name in state.dense for top in tops):
        return DENSE_PHASE_SENTENCE
    if any(top.name in state.gathered for top in tops):
        return FSDP_SENTENCE
    if decorated and mark is None:
        return DECORATED_SENTENCE
    return (
        _refuse_transform(linear)
        or _refuse_target(linear, match, state.config_for(mark))
        or _refuse_shape(linear, state.options_for(mark).alignment)
        or _refuse_dtype(linear)
    )


def _refuse_transform(linear: Linear) -> str:
    value = fake(linear.node)
    return TRANSFORM_SENTENCE if value is not None and is_functorch_wrapped_tensor(value) else ""


def _refuse_target(linear: Linear, match: Match, config: Config) -> str:
    assert linear.weight is not None
    if config.targets == "down" and linear is not match.linears[-1]:
        return "targets='down' takes the down projections alone"
    paths = {module_path(linear.scope, linear.node, linear.weight)}
    if linear.scope.calls:  # a shared body runs for several modules; its stack names only the first
        paths |= {parameter_name(top).rpartition(".")[0] for top in linear.weight_inputs}
    anywhere = mark_of(linear.node) is not None
    for path in sorted(paths):
        for pattern in config.exclude:
            if _is_found(pattern, path, anywhere):
                return f"its path {path!r} matches exclude={pattern!r}"
    if config.include and not any(_is_found(pattern, path, anywhere) for pattern in config.include for path in paths):
        return f"its path {sorted(paths)[0]!r} matches none of include={config.include!r}"
    return ""


def _is_found(pattern: str, path: str, anywhere: bool) -> bool:
    """Searches a regex in a module path; `anywhere`: from any of its modules on, since what is decorated has a longer
    path inside an outer compile than by itself, and an anchor is to mean the same in both."""
    names = path.split(".")
    starts = range(len(names)) if anywhere else (0,)
    return any(re.search(pattern, ".".join(names[start:])) for start in starts)


def _refuse_shape(linear: Linear, alignment: int) -> str:
    for what, size in (("output", linear.out_features), ("input", linear.in_features)):
        if size % alignment:
            return f"its {size} {what} features are no multiple of {alignment}, which the 2:4 format needs"
    value, bias = fake(linear.node), fake(linear.bias)
    assert value is not None
    if linear.bias is not None and (bias is None or tuple(bias.shape) != (linear.out_features,)):
        return "its bias is no vector of one number per output feature"
    expected: int | torch.SymInt = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if not statically_known_true(size == 1) and not statically_known_true(stride == expected):
            return "its result is not row-major"
        expected = expected * size if not statically_known_true(size == 0) else expected
    return ""


def _refuse_dtype(linear: Linear) -> str:
    weight, value = fake(linear.weight), fake(linear.node)
    assert weight is not None
    assert value is not None
    if type(weight).__name__ == "DTensor":
        return DTENSOR_SENTENCE
    if is_traceable_wrapper_subclass(weight):
        return f"its weight is a {type(weight).__name__}, a tensor subclass that multiplies in its own way"
    if weight.device.type == "meta":
        return "its weight is on the meta device and holds no numbers"
    for dtype in (weight.dtype, value.dtype):
        if dtype == torch.float64 and weight.device.type != "cpu":
            return "it computes in float64, which only the CPU reference does; use float32 or 16 bits"
        if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            return f"its dtype {str(dtype).removeprefix('torch.')} is not supported; use float32, bfloat16 or float16"
    return ""


def _refuse_shared_weights(state: State) -> None:
    """Takes a weight only if every use of it is taken; refusing one use may refuse others, so to a fixpoint."""
    while True:
        live = [(m, n) for m in state.matches if not m.refusal for n in m.linears if n not in m.stays]
        taken = {linear.node for _, linear in live}
        layouts: dict[fx.Node, set[str]] = {}
        for _, linear in live:
            for top in linear.weight_inputs:
                layouts.setdefault(top, set()).add(linear.layout)
        stay = [(match, linear, why) for match, linear in live if (why := _other_use(linear, state, taken, layouts))]
        for match, linear, why in stay:
            match.stays[linear] = why
        if not stay:
            return


def _other_use(linear: Linear, state: State, taken: set[fx.Node], layouts: dict[fx.Node, set[str]]) -> str:
    assert linear.weight is not None
    for top in linear.weight_inputs:
        if len(layouts[top]) > 1:
            return "its weight is used both as it is and transposed"
        for user in _users_of_weight(state.scopes[0], top):
            if user in taken and user.args[0] is not top:
                continue
            name = "an output of the graph" if user.op == "output" else f"`{general_name(user)}`"
            line = user_line(user)
            return f"its weight {parameter_name(top)} has another use, {name}{f' ({line})' if line else ''}"
    return ""


def _users_of_weight(scope: Scope, node: fx.Node) -> list[fx.Node]:
    """What uses a weight, through bodies, transposes and casts."""
    found = []
    for where, user, operand in uses(scope, node):
        if is_weight_view(user, operand):
            found += _users_of_weight(where, user)
        else:
            found.append(user)
    return found
