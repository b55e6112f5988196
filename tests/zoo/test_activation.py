"""Unmodified models whose hidden states are sparse by themselves, under recipe="activation": all layers are taken, and
train as with dense arithmetic on pruned hidden states."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch._dynamo.utils import counters

import s24compile
from tests.masked import gradients
from tests.pruned import pruned_call
from tests.zoo.case import LAYERS, Case, D, F, main_output
from tests.zoo.checks import EXACT, placed
from tests.zoo.plain import TORCH

OPTIONS = {name: value for name, value in EXACT.items() if name != "decay"} | {"recipe": "activation", "dense_until": 0}


class Transposed(nn.Module):
    """modded-nanogpt's MLP: both parameters [F, D], cast in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = (nn.Parameter(torch.randn(F, D) / 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(x, self.c_fc.type_as(x))
        x = functional.relu(x).square()
        return functional.linear(x, self.c_proj.T.type_as(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Transposed() for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(functional.rms_norm(x, (D,)))
        return x


OWN = {
    "TransformerEncoderLayer": TORCH["TransformerEncoderLayer"],
    "TransformerEncoder": TORCH["TransformerEncoder"],
    "Transformer": TORCH["Transformer"],
    "modded-nanogpt-like": Case(lambda _: Residual(), lambda: {"x": torch.randn(2, 8, D)}, ()),
}
HUGGING_FACE = ("OPT", "Nemotron", "T5")


def downs(case: Case) -> list[str]:
    """The last projections' weights, by hand."""
    return [ffn.weights[-1] for ffn in case.ffns] or [f"layers.{i}.c_proj" for i in range(LAYERS)]


def case_of(name: str) -> Case:
    if name in OWN:
        return OWN[name]
    pytest.importorskip("transformers", "5.20", reason='transformers 5.20 is not installed: pip install -e ".[zoo]"')
    from tests.zoo.hugging_face import MODELS

    return MODELS[name]


@pytest.mark.parametrize("name", [*OWN, *HUGGING_FACE])
def test_train_like_arithmetic_on_pruned_hidden_states(name: str, device: str) -> None:
    case = case_of(name)
    model, inputs = placed(case, device)
    torch._dynamo.reset()
    counters.clear()
    y = main_output(torch.compile(model, backend="s24", options=OPTIONS, fullgraph=True)(**inputs))
    assert counters["stats"]["unique_graphs"] == 1
    cotangent = torch.randn_like(y)
    (y * cotangent).sum().backward()
    got, stats = gradients(model), s24compile.activation_stats(model)
    assert len(stats) == len(downs(case)), stats
    assert all(0.2 < found.nonzero < 0.8 for found in stats.values()), "random weights: about half"
    assert not s24compile.sparse_weights(model)

    reference, _ = placed(case, device)
    expected_y = main_output(functools.partial(pruned_call, reference, downs(case))(**inputs))
    (expected_y * cotangent).sum().backward()
    torch.testing.assert_close(y, expected_y, rtol=1e-5, atol=1e-5)
    expected = gradients(reference)
    largest = max(float(g.abs().max()) for g in expected.values())
    for key, gradient in expected.items():
        allowed = 1e-5 * float(gradient.abs().max()) + 1e-6 * largest
        assert float((got[key] - gradient).abs().max()) <= allowed, key
