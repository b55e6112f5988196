"""For which machine a graph is rewritten."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from s24compile.compiler.rewriting import target_of
from s24compile.config import Config
from s24compile.kernels.target import Target


def on(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


WEIGHT = nn.Parameter(on("meta", 64, 32))


def kind(*inputs: Any) -> str:
    return target_of(inputs, Config()).device_type


def test_ask_the_weights_where_inputs_come_from_another_device() -> None:
    lengths, mask = on("cpu", 4, dtype=torch.int64), on("cpu", 4, 8, dtype=torch.bool)
    assert kind(lengths, mask, on("cpu", 4, 32), 8, WEIGHT) == "meta"
    assert kind(on("meta", 4, 32), nn.Parameter(on("cpu", 64, 32))) == "cpu"


def test_ask_no_parameter_that_is_no_weight() -> None:
    scale, table = nn.Parameter(on("cpu", 32)), nn.Parameter(on("cpu", 8, 8, dtype=torch.int8), requires_grad=False)
    assert kind(scale, table, WEIGHT) == "meta"


def test_ask_the_first_tensor_where_there_is_no_weight() -> None:
    assert kind(8, on("cpu"), on("meta", 4, 32), on("cpu", 4, 32)) == "meta"
    assert kind(8, on("cpu")) == "cpu"


def test_ask_weights_of_a_model_that_moves_its_inputs_itself() -> None:
    class Moves(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(self.weight.device))

    seen = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        seen.append(kind(*example_inputs))
        return gm.forward

    torch.compile(Moves(32, 64, device="meta"), backend=backend)(on("cpu", 4, 32))
    assert seen == ["meta"]


def test_take_the_target_that_is_asked_for() -> None:
    assert target_of((WEIGHT,), Config(target="sm_90")) == Target.parse("sm_90")
