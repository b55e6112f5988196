"""What speaks against rewriting a layer, and one linear of it: two tables of checks, each with its sentence.

A check gives "" where it has nothing against it. The first sentence counts, so that what the user asked for comes
before what the format needs.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.config import Config
from s24compile.graphs.marks import mark_of
from s24compile.passes.linears import Linear
from s24compile.passes.match import Match
from s24compile.passes.outside import DTENSOR_SENTENCE
from s24compile.passes.provenance import module_paths
from s24compile.passes.scope import fake, known_fake
from s24compile.passes.state import LinearOptions, State
from s24compile.torch_internals.tensors import is_functorch_wrapped_tensor, is_traceable_wrapper_subclass
from s24compile.weights.sharding import GATHERING_SENTENCES

DDP_SENTENCE = (
    "DDP's optimizer cut this graph at its gradient buckets, usually between an activation and its last projection; "
    "set torch._dynamo.config.optimize_ddp = False and compile block by block (block.compile(backend='s24')), which "
    'overlaps its all-reduces with the backward; "python_reducer" keeps layers whole too, and overlaps none'
)
DECORATED_SENTENCE = "another module of this graph is decorated with sparse_ffn, and then only decorated ones are taken"
TRANSFORM_SENTENCE = "it runs inside a transform of torch.func, and the 2:4 ops have no rules for those"
NESTED_SENTENCE = (
    "its input is a jagged nested tensor, which the 2:4 ops do not take; call it with x.values(), the rows of all "
    "sequences in one matrix"
)
EIGHT_BIT_SENTENCE = "precision='fp8' is not possible here: {why}; precision='auto' trains it in 16 bits"
DENSE_PHASE_SENTENCE = "it is in its dense phase"
DOWN_SENTENCE = "targets='down' takes the down projections alone"


@dataclasses.dataclass(frozen=True)
class Asked:
    """A linear that is asked about, and what the answer may depend on."""

    linear: Linear
    match: Match
    state: State
    decorated: bool
    """Any module of the graphs is decorated with `sparse_ffn`."""

    @functools.cached_property
    def mark(self) -> str | None:
        """The mark of the decorated module that the linear is in."""
        return mark_of(self.linear.node)

    @property
    def config(self) -> Config:
        """The options that say whether it is taken."""
        return self.state.config_for(self.mark)

    @property
    def options(self) -> LinearOptions:
        """How it will compute."""
        return self.state.options_for(self.mark)

    @property
    def value(self) -> torch.Tensor:
        """Its result, as a fake tensor."""
        return known_fake(self.linear.node)


def cut_graph(match: Match, state: State, decorated: bool) -> str:
    """Something cut the graph, and with it most layers: DDP's optimizer."""
    return state.cut_reason


def undecorated_layer(match: Match, state: State, decorated: bool) -> str:
    """Where any module is decorated, only those are taken."""
    own = any(mark_of(linear.node) is not None for linear in match.linears)
    return DECORATED_SENTENCE if decorated and not own else ""


def no_plain_linear(asked: Asked) -> str:
    """No F.linear by a parameter, as the rules have found out; or by what FSDP makes of one."""
    linear, refused = asked.linear, asked.state.refused
    if linear.foreign and refused:
        known = next((why for node in linear.node.all_input_nodes if (why := refused.get(node.name))), "")
        return known or linear.foreign
    return linear.foreign or linear.unsupported


def dense_phase(asked: Asked) -> str:
    """Its weight trains dense now."""
    return DENSE_PHASE_SENTENCE if any(w.name in asked.state.dense for w in asked.linear.weight_inputs) else ""


def refused(asked: Asked) -> str:
    """Its weight stays dense wherever this graph uses it: FSDP2 gathers it, or a backward has a formula with it.

    To a 2:4 hidden state the first is nothing: no weight of it is packed.
    """
    whys = [why for w in asked.linear.weight_inputs if (why := asked.state.refused.get(w.name))]
    return next((why for why in whys if asked.match.hidden is None or why not in GATHERING_SENTENCES), "")


def undecorated(asked: Asked) -> str:
    """Of a layer with a part in a decorated module, the other part."""
    return DECORATED_SENTENCE if asked.decorated and asked.mark is None else ""


def transformed(asked: Asked) -> str:
    """vmap, grad and their like run it on tensors of their own."""
    return TRANSFORM_SENTENCE if is_functorch_wrapped_tensor(asked.value) else ""


def not_down(asked: Asked) -> str:
    """targets="down", and it is none."""
    return DOWN_SENTENCE if asked.config.targets == "down" and asked.linear is not asked.match.linears[-1] else ""


def excluded(asked: Asked) -> str:
    """Its path is excluded, or not included."""
    linear, config = asked.linear, asked.config
    paths = module_paths(linear.scope, linear.node, linear.weight)
    anywhere = asked.mark is not None
    for path in paths:
        for pattern in config.exclude:
            if _is_found(pattern, path, anywhere):
                return f"its path {path!r} matches exclude={pattern!r}"
    if config.include and not any(_is_found(pattern, path, anywhere) for pattern in config.include for path in paths):
        return f"its path {paths[0]!r} matches none of include={config.include!r}"
    return ""


def _is_found(pattern: str, path: str, anywhere: bool) -> bool:
    """Searches a regex in a module path; `anywhere`: from any of its modules on, since what is decorated has a longer
    path inside an outer compile than by itself, and an anchor is to mean the same in both."""
    names = path.split(".")
    starts = range(len(names)) if anywhere else (0,)
    return any(re.search(pattern, ".".join(names[start:])) for start in starts)


def no_eight_bits(asked: Asked) -> str:
    """precision="fp8" on a machine, or for a dtype, that has no such products."""
    if not asked.options.eight_bit:
        return ""
    if asked.options.impossible:
        return EIGHT_BIT_SENTENCE.format(why=asked.options.impossible)
    if asked.value.dtype == torch.float64:
        return "it computes in float64, and products of eight-bit floats are summed in float32; use that or 16 bits"
    return ""


def unaligned(asked: Asked) -> str:
    """A width that the format does not take."""
    linear, options = asked.linear, asked.options
    needs = "2:4 operands of eight-bit floats need" if options.eight_bit else "the 2:4 format needs"
    for what, size in (("output", linear.out_features), ("input", linear.in_features)):
        if size % options.alignment:
            return f"its {size} {what} features are no multiple of {options.alignment}, which {needs}"
    return ""


def odd_bias(asked: Asked) -> str:
    """A bias that s24.linear has no place for."""
    linear, bias = asked.linear, fake(asked.linear.bias)
    if linear.bias is not None and (bias is None or tuple(bias.shape) != (linear.out_features,)):
        return "its bias is no vector of one number per output feature"
    return ""


def odd_layout(asked: Asked) -> str:
    """A result whose rows do not follow each other."""
    value = asked.value
    expected: int | torch.SymInt = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if not statically_known_true(size == 1) and not statically_known_true(stride == expected):
            return "its result is not row-major"
        expected = expected * size if not statically_known_true(size == 0) else expected
    return ""


def odd_tensor(asked: Asked) -> str:
    """A weight or an input that is no plain tensor."""
    weight, x = known_fake(asked.linear.weight), fake(asked.linear.x)
    if type(weight).__name__ == "DTensor":
        return DTENSOR_SENTENCE
    if x is not None and x.is_nested:
        return NESTED_SENTENCE
    for what, value in (("weight", weight), ("input", x)):
        if value is not None and is_traceable_wrapper_subclass(value):
            return f"its {what} is a {type(value).__name__}, a tensor subclass that multiplies in its own way"
    return "its weight is on the meta device and holds no numbers" if weight.device.type == "meta" else ""


def odd_dtype(asked: Asked) -> str:
    """A dtype that no kernel computes in."""
    weight = known_fake(asked.linear.weight)
    for dtype in (weight.dtype, asked.value.dtype):
        if dtype == torch.float64 and weight.device.type != "cpu":
            return "it computes in float64, which only the CPU reference does; use float32 or 16 bits"
        if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            return f"its dtype {str(dtype).removeprefix('torch.')} is not supported; use float32, bfloat16 or float16"
    return ""


LAYER_CHECKS: tuple[Callable[[Match, State, bool], str], ...] = (cut_graph, undecorated_layer)
"""Against a whole layer."""
LINEAR_CHECKS: tuple[Callable[[Asked], str], ...] = (
    no_plain_linear, dense_phase, refused, undecorated, transformed, not_down, excluded, odd_tensor, no_eight_bits,
    unaligned, odd_bias, odd_layout, odd_dtype,
)  # fmt: skip
"""Against one linear, the rest of its layer being taken."""


def against_layer(match: Match, state: State, decorated: bool) -> str:
    """The first sentence against a layer, or ""."""
    return next((why for check in LAYER_CHECKS if (why := check(match, state, decorated))), "")


def against_linear(asked: Asked) -> str:
    """The first sentence against a linear, or ""."""
    return next((why for check in LINEAR_CHECKS if (why := check(asked))), "")


def multiplies_eight_bits(asked: Asked) -> bool:
    """Whether a dense linear of a layer in eight bits multiplies those, too: the recipe alone, or its phase, has it
    dense, and no check speaks against it but of what 2:4 needs."""
    if not asked.options.eight_bit or asked.match.stays.get(asked.linear) not in (DENSE_PHASE_SENTENCE, DOWN_SENTENCE):
        return False
    return not any(check(asked) for check in LINEAR_CHECKS if check not in (dense_phase, not_down, unaligned))
