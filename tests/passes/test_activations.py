"""Which activation a layer has, whatever its spelling: what a recipe that is about activations goes by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from s24compile import passes
from s24compile.config import Config
from s24compile.passes.canonicalize import canonicalize
from s24compile.passes.find import find
from s24compile.passes.match import Match
from tests import ffn_spellings, ffns
from tests.passes.harness import input_of


def matches_of(model: nn.Module, x: torch.Tensor | None = None, **compile_options) -> list[Match]:
    """What the finders make of a model, before anything is decided."""
    found: list[Match] = []

    def backend(gm, example_inputs):
        def note(state):
            found.extend(state.matches)
            return 0

        passes.run(gm, Config(), passes.LinearOptions(), passes=(canonicalize, find, note))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, **compile_options)(input_of() if x is None else x)
    return found


@pytest.mark.parametrize("name", ffn_spellings.ACTIVATIONS)
def test_name_the_activation_of_a_match(name):
    family, act = ffn_spellings.ACTIVATIONS[name]
    (match,) = matches_of(ffns.Plain(act))
    assert match.activation is not None
    assert match.activation.name == family
    assert match.activation.h is match.linears[0].node
    assert match.activation.node is match.linears[1].x


def test_leave_the_activation_of_gates_to_the_gate():
    (match,) = matches_of(ffns.Gated(lambda x: F.relu(x).square()))
    assert match.activation is None
    assert match.gate is not None
    assert match.gate.act == "relu2"
