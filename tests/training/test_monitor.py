"""Logging flip rates: what is logged, when, to whom, and that nothing is read from the device in between."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

import s24compile
from s24compile import errors
from s24compile.config import Config
from s24compile.training import monitor
from s24compile.training.monitor import log_flip_rates
from s24compile.weights.model_state import load_state_dict, sparse_weights, state_dict
from tests.freshening import MLP, train

EACH = Config(mask_interval=1)


class Writer:
    """As TensorBoard's SummaryWriter."""

    def __init__(self):
        self.points = []

    def add_scalar(self, tag, scalar_value, global_step):
        self.points.append((tag, scalar_value, global_step))


def model_and_optimizer():
    torch.manual_seed(0)
    model = MLP()
    return model, torch.optim.SGD(model.parameters(), lr=0.5)


def test_log_every_weight_and_all_of_them():
    model, optimizer = model_and_optimizer()
    logged = []
    with log_flip_rates(model, lambda values, step: logged.append((step, dict(values))), every=3):
        train(model, optimizer, EACH, range(7))
    assert [step for step, _ in logged] == [3, 6]
    weights = sparse_weights(model)
    for _, values in logged:
        assert set(values) == {
            "s24/flip_rate", "s24/flip_rate/up.weight", "s24/flip_rate/down.weight", "s24/sparse_share",
        }  # fmt: skip
        each = [values[f"s24/flip_rate/{name}"] for name in weights]
        assert values["s24/flip_rate"] == pytest.approx(sum(each) / 2), "two weights of one size"
        assert values["s24/sparse_share"] == 1.0


def test_log_the_rates_that_the_weights_have():
    model, optimizer = model_and_optimizer()
    logged = []
    log_flip_rates(model, lambda values, step: logged.append(values), every=1, prefix="run")
    for step in range(5):
        train(model, optimizer, EACH, range(step, step + 1))
        known = {f"run/flip_rate/{n}": w.flip_rate for n, w in sparse_weights(model).items() if step > 0}
        assert {tag: value for tag, value in logged[step].items() if "weight" in tag} == known
    assert len(logged) == 5


def test_write_to_tensorboard_by_its_own_arguments():
    model, optimizer = model_and_optimizer()
    writer = Writer()
    log_flip_rates(model, writer, every=2)
    train(model, optimizer, Config(mask_interval=1, dense_after=3), range(4))
    assert {step for _, _, step in writer.points} == {2, 4}
    assert ("s24/sparse_share", 0.0, 4) in writer.points, "dense after three steps"
    assert all(isinstance(value, float) for _, value, _ in writer.points)


def test_read_nothing_where_nothing_is_logged(monkeypatch):
    model, optimizer = model_and_optimizer()
    reads = []
    plain = monitor.flip_rates
    monkeypatch.setattr(monitor, "flip_rates", lambda weights: reads.append(len(weights)) or plain(weights))
    log_flip_rates(model, lambda values, step: None, every=5)
    train(model, optimizer, EACH, range(9))
    assert reads == [2], "once for both weights"


@pytest.mark.gpu
def test_do_not_stop_the_host_where_nothing_is_logged():
    model = MLP().cuda()
    compiled = torch.compile(model, backend="s24", options={"inner": "aot_eager", "min_speedup": 0.0})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    log_flip_rates(model, lambda values, step: None, every=100)
    x = torch.randn(64, 16, device="cuda")
    for _ in range(2):
        compiled(x).sum().backward()
        optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        compiled(x).sum().backward()
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_stop_when_told_and_when_the_model_is_gone():
    model, optimizer = model_and_optimizer()
    logged = []
    handle = log_flip_rates(model, lambda values, step: logged.append(step), every=1)
    train(model, optimizer, EACH, range(2))
    handle.remove()
    train(model, optimizer, EACH, range(2, 4))
    assert logged == [1, 2]
    log_flip_rates(model, lambda values, step: logged.append(step), every=1)
    del model, optimizer
    gc.collect()
    other, optimizer = model_and_optimizer()
    train(other, optimizer, EACH, range(2))
    assert logged == [1, 2], "another model's steps are not ours"


def test_log_a_nested_step_and_two_optimizers_once():
    class Nested(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model = MLP()
    both = [Nested(model.up.parameters(), lr=0.1), Nested(model.down.parameters(), lr=0.1)]

    class Both:
        def step(self):
            for optimizer in both:
                optimizer.step()

        def zero_grad(self):
            for optimizer in both:
                optimizer.zero_grad()

    logged = []
    log_flip_rates(model, lambda values, step: logged.append(step), every=2)
    train(model, Both(), EACH, range(6))
    assert logged == [2, 4, 6]


def test_go_on_from_the_step_of_a_resumed_run():
    model, optimizer = model_and_optimizer()
    train(model, optimizer, EACH, range(5))
    resumed, optimizer = model_and_optimizer()
    load_state_dict(resumed, state_dict(model))
    logged = []
    log_flip_rates(resumed, lambda values, step: logged.append(step), every=2)
    train(resumed, optimizer, EACH, range(5, 8))
    assert logged == [6, 8]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"every": 0}, errors.OptionError, "every"),
        ({"every": 2.0}, errors.OptionError, "every"),
        ({"writer": 3}, errors.ModelError, "add_scalar"),
        ({"model": "net"}, errors.ModelError, "nn.Module"),
    ],
)
def test_refuse_what_cannot_be_logged(arguments, error, said):
    given = {"model": nn.Linear(4, 4), "writer": print} | arguments
    with pytest.raises(error, match=said):
        s24compile.log_flip_rates(given.pop("model"), given.pop("writer"), **given)


def test_log_what_hidden_states_hold():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch._dynamo.reset()
    options = {"recipe": "activation", "dense_until": 2, "inner": "eager", "min_speedup": 0.0}
    fast = torch.compile(model, backend="s24", options=options)
    logged, flips = [], []
    s24compile.log_activation_stats(model, lambda values, step: logged.append((step, dict(values))), every=2)
    log_flip_rates(model, lambda values, step: flips.append(step), every=1)
    for _ in range(4):
        fast(torch.randn(8, 16)).sum().backward()
        optimizer.step()
    assert logged[0] == (2, {}), "no 2:4 forward yet"
    step, values = logged[1]
    (found,) = s24compile.activation_stats(model).values()
    assert step == 4
    assert values == {
        **{f"s24/{name}": getattr(found, name) for name in ("nonzero", "over", "dropped")},
        **{f"s24/{name}/": getattr(found, name) for name in ("nonzero", "over", "dropped")},
    }
    assert not flips, "no weight is sparse"


def test_refuse_to_log_hidden_states_for_nobody():
    with pytest.raises(errors.OptionError, match="every"):
        s24compile.log_activation_stats(nn.Linear(4, 4), print, every=0)
    with pytest.raises(errors.ModelError, match="log_activation_stats"):
        s24compile.log_activation_stats(nn.Linear(4, 4), object())
    with pytest.raises(errors.ModelError, match=r"nn\.Module"):
        s24compile.log_activation_stats(object(), print)
