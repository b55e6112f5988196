"""Changing numbers of tokens: as many graphs as torch's own backends compile for the same calls, and right ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from s24compile.recipe import RECIPES
from tests.masked import gradients

SHAPES = ((2, 12), (3, 12), (7, 16), (9, 33), (6, 31))
"""Batch and sequence: products below and above 64, with and without a remainder by 4 and by 16."""
PRUNED = {"recipe": "sste", "input_gradient": "mvue"}
"""All three products are of packed gradients or weights, and the tokens of one lie along its rows."""


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def gelu_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))


def graphs(model: nn.Module, backend: str, dynamic: bool | None, options: dict[str, Any] | None) -> int:
    """How many graphs Dynamo makes of forwards of all `SHAPES`; each with its backward."""
    torch._dynamo.reset()
    counters.clear()
    fast = torch.compile(model, backend=backend, dynamic=dynamic, options=options)
    for shape in SHAPES:
        fast(torch.randn(*shape, 16, requires_grad=True)).sum().backward()
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("options", [*({"recipe": name} for name in RECIPES), PRUNED], ids=str)
def test_compile_one_graph_for_all_numbers_of_tokens(options: dict[str, Any]) -> None:
    assert graphs(gelu_mlp(), "s24", True, {"inner": "aot_eager", **options}) == 1


def test_compile_one_graph_of_a_gated_layer_for_inductor() -> None:
    assert graphs(SwiGLU(), "s24", True, {"inner": "inductor"}) == 1


def test_compile_as_many_graphs_as_torchs_own_backend_where_dynamo_decides() -> None:
    expected = graphs(gelu_mlp(), "aot_eager", None, None)
    assert graphs(gelu_mlp(), "s24", None, {"inner": "aot_eager"}) == expected == 3


@pytest.mark.parametrize("dw", ["dense", "mvue"])
def test_give_each_number_of_tokens_what_a_graph_of_its_own_gives_it(dw: str) -> None:
    model = gelu_mlp()
    results = []
    for dynamic in (True, False):
        torch._dynamo.reset()
        fast = torch.compile(model, backend="s24", dynamic=dynamic, options={"inner": "aot_eager", "gradient": dw})
        for shape in SHAPES:
            torch.manual_seed(0)
            x = torch.randn(*shape, 16, requires_grad=True)
            y = fast(x)
            y.square().sum().backward()
            results.append((y, x.grad, *gradients(model).values()))
    half = len(results) // 2
    torch.testing.assert_close(results[:half], results[half:])
