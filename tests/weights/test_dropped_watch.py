"""What is said of layers that drop much of their 2:4 hidden state, and when."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import s24compile
from s24compile.weights import dropped_watch


class Layer(nn.Module):
    """ReLU behind a bias that decides how much of the hidden state is zero."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        with torch.no_grad():
            self.up.bias.fill_(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(nn.functional.relu(self.up(x)))


def compiled(model: nn.Module):
    torch._dynamo.reset()
    options = {"recipe": "activation", "dense_until": 0, "inner": "eager", "min_speedup": 0.0}
    return torch.compile(model, backend="s24", options=options)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING and "drops more" in r.getMessage()]


def test_name_a_layer_that_drops_much_once(caplog, on_device):
    torch.manual_seed(0)
    model = nn.Sequential(Layer(2.0), Layer(-1.0))
    fast, x = compiled(model), torch.randn(64, 16)
    for forward in range(1, 2 * dropped_watch.LOOK_EVERY + 12):
        fast(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        assert len(warnings_of(caplog)) <= (forward >= dropped_watch.FIRST_LOOK)
    (said,) = warnings_of(caplog)
    share = s24compile.activation_stats(model)["0"].dropped
    assert share > dropped_watch.LIMIT
    assert f"0.down.weight {share:.1%}" in said
    assert "1.down.weight" not in said
    for word in ("dense_until", "exclude", "activation_stats"):
        assert word in said


def test_say_nothing_of_a_hidden_state_that_is_sparse(caplog, on_device):
    model = Layer(-1.0)
    fast = compiled(model)
    for _ in range(dropped_watch.FIRST_LOOK + 2):
        fast(torch.randn(64, 16))
    assert s24compile.activation_stats(model)[""].dropped < dropped_watch.LIMIT
    assert not warnings_of(caplog)


def test_say_nothing_of_a_state_that_is_zero_or_has_no_token(caplog, on_device):
    for x in (torch.randn(8, 16), torch.randn(0, 16)):
        fast = compiled(Layer(-100.0))
        for _ in range(dropped_watch.FIRST_LOOK + 2):
            fast(x)
    assert not warnings_of(caplog)
