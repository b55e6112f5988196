"""The four quadrants of each family: it matches; wrong pattern; wrong shape; shared intermediate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s24compile.config import Config
from tests import ffns
from tests.masked import masked_call
from tests.passes.harness import Capture, check_masked, input_of


class Wide(nn.Module):
    """A layer written out, with any hidden width; `body(self, x)` is the forward."""

    def __init__(self, body, hidden: int = 64, halves: int = 1) -> None:
        super().__init__()
        self.up, self.gate = nn.Linear(32, hidden * halves), nn.Linear(32, hidden)
        self.down = nn.Linear(hidden, 32)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def plain(m, x):
    return m.down(F.gelu(m.up(x)))


def plain_without_activation(m, x):
    return m.down(torch.cos(m.up(x)))


def plain_shared(m, x):
    h = F.gelu(m.up(x))
    return m.down(h) * h.amax()


def gated(m, x):
    return m.down(F.silu(m.gate(x)) * m.up(x))


def gated_sum(m, x):
    return m.down(F.silu(m.gate(x)) + m.up(x))


def gated_shared(m, x):
    u = m.up(x)
    return m.down(F.silu(m.gate(x)) * u) + u.mean()


def fused(m, x):
    a, b = m.up(x).chunk(2, -1)
    return m.down(a * F.gelu(b))


def fused_thirds(m, x):
    a, b, _ = m.up(F.pad(x, (0, 0))).split([32, 32, 64], -1)
    return m.down(torch.cat((a * F.gelu(b), a), -1))


def fused_shared(m, x):
    z = m.up(x)
    a, b = z.chunk(2, -1)
    return m.down(a * F.gelu(b)) + z.mean()


def single(m, x):
    return torch.cos(m.up(x))


def single_einsum(m, x):
    return torch.einsum("bsd,fd->bsf", x, m.up.weight)


def single_shared(m, x):
    return torch.cos(m.up(x)) + m.up.weight.sum()


@dataclasses.dataclass(frozen=True)
class Quadrants:
    """One family: bodies and what the report says of each."""

    family: str
    rule: str
    matches: Callable
    wrong: Callable
    shared: Callable
    reason: str
    halves: int = 1
    targets: str = "ffn"


FAMILIES = {
    "plain": Quadrants("gelu", "plain", plain, plain_without_activation, plain_shared, "is also used by `amax`"),
    "gated": Quadrants("swiglu", "gated", gated, gated_sum, gated_shared, "is also used by `mean`"),
    "fused": Quadrants("geglu", "gated_fused", fused, fused_thirds, fused_shared, "is also used by `mean`", 2),
    "linear": Quadrants(
        "linear", "linear", single, single_einsum, single_shared, "has another use, `sum`", 1, "linear"
    ),
}


def _run(quadrants: Quadrants, body, hidden: int = 64) -> Capture:
    torch.manual_seed(0)
    model = Wide(body, hidden, quadrants.halves)
    capture = Capture(config=Config(targets=quadrants.targets))
    check_masked(model, capture, input_of())
    return capture


@pytest.mark.parametrize("name", FAMILIES)
def test_match_the_family(name):
    quadrants = FAMILIES[name]
    capture = _run(quadrants, quadrants.matches)
    (site,) = capture.sites
    assert (site.status, site.family, site.rule) == ("rewritten", quadrants.family, quadrants.rule)
    assert site.linears == capture.linears == len(site.weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_leave_another_pattern_alone(name):
    quadrants = FAMILIES[name]
    capture = _run(quadrants, quadrants.wrong)
    assert capture.linears == 0
    assert all(site.status == "refused" and site.reason for site in capture.sites)


@pytest.mark.parametrize("name", FAMILIES)
def test_refuse_the_wrong_shape(name):
    capture = _run(FAMILIES[name], FAMILIES[name].matches, hidden=40)
    assert capture.linears == 0 if name != "fused" else 1
    (site,) = capture.sites
    assert "features are no multiple of 16" in site.reason


@pytest.mark.parametrize("name", FAMILIES)
def test_refuse_a_shared_intermediate(name):
    quadrants = FAMILIES[name]
    capture = _run(quadrants, quadrants.shared)
    assert capture.linears == 0
    assert quadrants.reason in capture.sites[0].reason
    assert "tests/passes/test_families.py:" in capture.sites[0].reason


def test_take_two_layers_that_share_a_linear():
    """linear - relu - linear - relu - linear: the middle one is rewritten once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
    capture = Capture()
    check_masked(model, capture, input_of())
    assert capture.linears == 3
    assert [site.linears for site in capture.sites] == [2, 1]


def test_join_gate_and_up_into_one_linear_and_one_glu():
    capture = _run(FAMILIES["gated"], gated)
    targets = [str(n.target) for n in capture.rewrites[0].graph_module.graph.nodes if n.op == "call_function"]
    assert targets.count("s24.linear.default") == 2
    assert targets.count("s24.glu.default") == 1
    (joined, _) = capture.rewrites[0].operands
    assert joined.rows == (64, 64)


def mutated(m, x):
    x = x * 1.0
    g = F.silu(m.gate(x))
    x.add_(1.0)
    return m.down(g * m.up(x))


def test_keep_gate_and_up_apart_if_their_input_changes_between():
    torch.manual_seed(0)
    model, capture = Wide(mutated), Capture()
    torch._dynamo.reset()
    with torch.no_grad():  # a backward would need the x of before
        y = torch.compile(model, backend=capture)(input_of())
        torch.testing.assert_close(y, masked_call(model, capture.masks, input_of()))
    assert capture.linears == 3
    assert all(len(request.weights) == 1 for request in capture.rewrites[0].operands)


@pytest.mark.parametrize("p", [0, 0.0, 0.5])
@pytest.mark.parametrize("form", ["positional", "keyword", "module"])
def test_see_through_dropout(form, p):
    drop = {
        "positional": lambda h: F.dropout(h, p, True, False),
        "keyword": lambda h: F.dropout(h, p=p, training=True),
        "module": nn.Dropout(p),
    }[form]
    capture = Capture()
    torch._dynamo.reset()
    torch.compile(ffns.Plain(lambda h: drop(F.gelu(h))), backend=capture)(input_of())
    assert capture.linears == 2
    assert "dropout" in capture.graph()
