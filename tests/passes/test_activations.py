"""Which activation a layer has, whatever its spelling: what rewrites, reports and recipes about activations go by."""

from __future__ import annotations

import random

import hypothesis
import pytest
import torch
from hypothesis import strategies
from torch import fx, nn

from s24compile import passes
from s24compile.config import Config
from s24compile.passes.activations import find_activation, find_gating
from s24compile.passes.canonicalize import canonicalize
from s24compile.passes.find import find
from s24compile.passes.match import Match
from tests import ffn_spellings, ffns
from tests.passes.harness import Capture, check_masked, input_of
from tests.passes.stacks import Stack


def matches_of(model: nn.Module) -> list[Match]:
    """What the finders make of a model, before anything is decided."""
    found: list[Match] = []

    def backend(gm, example_inputs):
        def note(state):
            found.extend(state.matches)
            return 0

        passes.run(gm, Config(), passes.LinearOptions(), passes=(canonicalize, find, note))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend)(input_of())
    return found


LIBRARIES = {name: act for name, act in ffn_spellings.ACTIVATIONS.items() if name not in ffn_spellings.OTHER_SLOPES}
ALL = {**LIBRARIES, **ffn_spellings.SPELLED_OUT}


def test_name_the_activation_of_each_match():
    """One graph with a layer of each spelling: Dynamo is slower than what is tested."""
    found = matches_of(Stack(*(ffns.Plain(act) for _, act in ALL.values())))
    named = {name: match.activation and match.activation.name for name, match in zip(ALL, found, strict=True)}
    assert named == {name: family for name, (family, _) in ALL.items()}
    for name, match in zip(ALL, found, strict=True):
        assert match.activation is not None
        assert match.activation.h is match.linears[0].node
        assert match.activation.node is match.linears[1].x or name == "gelu_in_fp32"  # a cast stands between
    inexact = {name for name, match in zip(ALL, found, strict=True) if not match.activation.exact}
    assert inexact == {"relu_clamp", "relu_clamp_in_place", "relu_maximum"}


def test_compute_what_every_spelling_computes():
    torch.manual_seed(0)
    model, capture = Stack(*(ffns.Plain(act) for _, act in ffn_spellings.SPELLED_OUT.values())), Capture()
    check_masked(model, capture, input_of())
    assert capture.linears == 2 * len(ffn_spellings.SPELLED_OUT)
    ours = [str(node.target) for node in capture.nodes].count("s24.act.default")
    own = [name for name, (family, _) in ffn_spellings.SPELLED_OUT.items() if family in ("relu2", "quick_gelu")]
    assert ours == capture.linears // 2 - len(own)


def test_keep_the_slope_that_a_spelling_of_relu_has_at_zero():
    torch.manual_seed(0)
    model = Stack(*(ffns.Plain(act) for act in ffn_spellings.OTHER_SLOPES.values()))
    capture = Capture()
    for layer in model.Blocks:
        nn.init.zeros_(layer.fc1.weight)
        nn.init.zeros_(layer.fc1.bias)
    check_masked(model, capture, input_of())
    assert [(site.family, site.linears) for site in capture.sites] == [("relu", 2)] * len(model.Blocks)
    assert not any(str(node.target) == "s24.act.default" for node in capture.nodes)


def test_take_nothing_for_an_activation_that_is_only_near_to_one():
    found = matches_of(Stack(*(ffns.Plain(act) for act in ffn_spellings.NEARLY.values())))
    assert [match.activation for match in found] == [None] * len(ffn_spellings.NEARLY)
    assert all(match.refusal for match in found)


def test_find_a_gate_in_every_order_of_its_factors():
    torch.manual_seed(0)
    gates = [ffns.GatedBy(product) for _, product in ffn_spellings.GATES.values()]
    halves = [ffns.Fused(lambda z: z.chunk(2, -1), product) for _, product in ffn_spellings.GATES.values()]
    model, capture = Stack(*gates, *halves), Capture()
    check_masked(model, capture, input_of())
    families = [family for family, _ in ffn_spellings.GATES.values()]
    assert [site.family for site in capture.sites] == families * 2
    assert [site.linears for site in capture.sites] == [3] * len(gates) + [2] * len(halves)
    ours = [str(node.target) for node in capture.nodes].count("s24.glu.default")
    own = [name for name in ffn_spellings.GATES if name.startswith(("relu_clamp", "relu2", "quick"))]
    assert ours == 2 * (len(gates) - len(own))


def test_leave_the_activation_of_gates_to_the_gate():
    (match,) = matches_of(ffns.Gated(lambda x: torch.relu(x).square()))
    assert match.activation is None
    assert match.gate is not None
    assert match.gate.act.name == "relu2"


def traced(function, *names: str) -> fx.Node:
    """The result of `function` as a node of a graph with values [2, 4]."""
    graph = fx.symbolic_trace(function).graph
    values: dict[fx.Node, torch.Tensor] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = torch.randn(2, 4, requires_grad=True)
        elif node.op != "output":
            args = fx.map_arg(node.args, values.__getitem__)
            call = node.target if node.op == "call_function" else getattr(torch.Tensor, node.target)
            values[node] = call(*args, **node.kwargs)
    for node, value in values.items():
        node.meta["example_value"] = value
    return graph.output_node().args[0]


TANH = lambda z: torch.tanh(0.7978845608 * (z + 0.044715 * z**3))  # noqa: E731
FACTORS = {
    "gelu_tanh": [lambda z: z, lambda z: 0.5, lambda z: 1 + TANH(z)],
    "gelu": [lambda z: z, lambda z: 0.5, lambda z: 1 + torch.erf(z * 0.70710678118)],
    "silu": [lambda z: z, torch.sigmoid],
    "quick_gelu": [lambda z: z, lambda z: torch.sigmoid(z * 1.702)],
    "relu": [lambda z: z, lambda z: z > 0],
    "relu2": [torch.relu, torch.relu],
}
"""Activations as products."""


def arrange(factors, order: random.Random):
    """The product of factors in some order, and with brackets somewhere; numbers may be divisors."""
    rest = list(factors)
    order.shuffle(rest)
    while len(rest) > 1:
        place = order.randrange(len(rest) - 1)
        a, b = rest[place : place + 2]
        divide = isinstance(b, float) and order.random() < 0.5
        rest[place : place + 2] = [a / (1.0 / b) if divide else a * b]
    return rest[0]


OTHERS = {
    "neighbours": lambda z: z * torch.sigmoid(z.flip(-1)),
    "largest": lambda z: torch.relu(z) * z.amax(-1, keepdim=True),
    "constant": lambda z: torch.zeros_like(z) + 1.0,
    "itself": lambda z: z * 1.0,
}


@pytest.mark.parametrize("name", OTHERS)
def test_find_no_activation_in_what_is_no_function_of_single_numbers(name):
    assert find_activation(traced(OTHERS[name])) is None


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    strategies.sampled_from(sorted(FACTORS)), strategies.randoms(use_true_random=False), strategies.booleans()
)
def test_find_a_product_in_every_arrangement(name, order, gated):
    if gated:
        node = traced(lambda z, u: arrange([f(z) for f in FACTORS[name]] + [u], order))
        found = find_gating(node)
        z, u = node.graph.find_nodes(op="placeholder")
        assert found is not None
        assert (found.name, found.gate, found.up, found.exact) == (name, z, u, True)
    else:
        node = traced(lambda z: arrange([f(z) for f in FACTORS[name]], order))
        found = find_activation(node)
        (z,) = node.graph.find_nodes(op="placeholder")
        assert found is not None
        assert (found.name, found.h, found.node, found.exact) == (name, z, node, True)
