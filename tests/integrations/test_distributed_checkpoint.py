"""Sparse state through torch.distributed.checkpoint: into a model that has run, into a fresh one, in any wrapper."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.stateful import Stateful as Protocol

import s24compile
from s24compile import errors
from s24compile.config import Config
from s24compile.weights.model_state import load_state_dict, sparse_weights, state_dict
from tests.freshening import MLP, sparse_forward, train

CONFIG = Config(mask_interval=3, gradient="dense")
WEIGHTS = ("up.weight", "down.weight")
pytestmark = pytest.mark.filterwarnings("ignore")  # of one process that uses distributed checkpoints


def trained(steps: int = 7) -> MLP:
    model = MLP()
    sparse_forward(model, torch.randn(8, 16), CONFIG)
    if steps:
        train(model, torch.optim.SGD(model.parameters(), lr=0.5), CONFIG, range(steps))
    return model


def same_state(one: nn.Module, other: nn.Module) -> bool:
    first, second = state_dict(one), state_dict(other)
    return first.keys() == second.keys() and all(
        torch.equal(a, second[name][field]) if isinstance(a, torch.Tensor) else a == second[name][field]
        for name in first
        for field, a in first[name].items()
    )


def app(model: nn.Module) -> dict[str, Any]:
    return {"model": model.state_dict(), "s24": s24compile.Stateful(model)}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("steps", [0, 7])
def test_load_into_any_model(steps: int, warm: bool, tmp_path: Path) -> None:
    donor, model = trained(steps), MLP()
    dcp.save(app(donor), checkpoint_id=tmp_path)
    if warm:
        sparse_forward(model, torch.randn(8, 16), CONFIG)
    dcp.load(app(model), checkpoint_id=tmp_path)
    sparse_forward(model, torch.randn(8, 16), CONFIG)
    sparse_forward(donor, torch.randn(8, 16), CONFIG)
    assert [w.steps for w in sparse_weights(model).values()] == [steps, steps]
    assert same_state(model, donor)


def test_go_on_bit_for_bit_in_a_fresh_model(tmp_path: Path) -> None:
    def optimizer_of(model: MLP) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    donor, fresh = MLP(), MLP()
    optimizer = optimizer_of(donor)
    train(donor, optimizer, CONFIG, range(5))
    dcp.save({**app(donor), "optimizer": get_optimizer_state_dict(donor, optimizer)}, checkpoint_id=tmp_path)
    losses = train(donor, optimizer, CONFIG, range(5, 12))
    resumed = optimizer_of(fresh)
    loaded = {**app(fresh), "optimizer": get_optimizer_state_dict(fresh, resumed)}
    dcp.load(loaded, checkpoint_id=tmp_path)
    set_optimizer_state_dict(fresh, resumed, loaded["optimizer"])
    assert torch.equal(train(fresh, resumed, CONFIG, range(5, 12)), losses)


def test_name_weights_as_the_innermost_model_whatever_wraps_it(tmp_path: Path) -> None:
    donor, model = trained(), MLP()
    names = [name for name, _ in model.named_parameters()]
    for wrapped in (donor, torch.compile(donor), nn.DataParallel(torch.compile(donor))):
        assert list(s24compile.Stateful(wrapped).state_dict()) == names
    dcp.save({"s24": s24compile.Stateful(nn.DataParallel(torch.compile(donor)))}, checkpoint_id=tmp_path)
    dcp.load({"s24": s24compile.Stateful(model)}, checkpoint_id=tmp_path)
    sparse_forward(model, torch.randn(8, 16), CONFIG)
    assert [w.steps for w in sparse_weights(model).values()] == [7, 7]


def test_be_what_torch_calls_stateful_and_hold_bytes_alone() -> None:
    state = s24compile.Stateful(trained()).state_dict()
    assert isinstance(s24compile.Stateful(MLP()), Protocol)
    assert {name: type(value) for name, value in state.items()} == dict.fromkeys(state, bytes)
    assert {name for name, value in state.items() if value} == set(WEIGHTS)
    assert set(s24compile.Stateful(MLP()).state_dict().values()) == {b""}


def test_load_a_part_that_another_number_of_stages_has_saved() -> None:
    whole = s24compile.Stateful(trained()).state_dict()
    part = nn.Module()
    part.up = nn.Linear(16, 32)
    s24compile.Stateful(part).load_state_dict({name: whole[name] for name, _ in part.named_parameters()})
    assert state_dict(part)["up.weight"]["steps"] == 7


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bytes": lambda s: s | {"up.weight": b"no zip file"},
    "type": lambda s: s | {"up.weight": 3},
    "content": lambda s: s | {"up.weight": s["up.weight"][:-40]},
    "foreign": lambda s: {**s, "other.weight": s["up.weight"]},
    "partial": lambda s: s | {"up.weight": b""},
    "no mapping": lambda s: list(s),
}


@pytest.mark.parametrize("how", BROKEN)
def test_refuse_what_is_broken_whole(how: str) -> None:
    model = trained(3)
    before, broken = state_dict(model), BROKEN[how](s24compile.Stateful(trained()).state_dict())
    with pytest.raises(errors.CheckpointError, match="none of it was loaded"):
        s24compile.Stateful(model).load_state_dict(broken)
    assert [e["steps"] for e in state_dict(model).values()] == [e["steps"] for e in before.values()] == [3, 3]


def test_refuse_what_is_no_module() -> None:
    with pytest.raises(errors.ModelError, match=r"nn\.Module"):
        s24compile.Stateful([MLP()])  # type: ignore[arg-type]


def test_say_that_a_plain_state_loads_nothing_into_a_fresh_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    donor, model = trained(), MLP()
    dcp.save({"s24": state_dict(donor)}, checkpoint_id=tmp_path)
    loaded: dict[str, Any] = {"s24": state_dict(model)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(loaded, checkpoint_id=tmp_path)
    load_state_dict(model, loaded["s24"])
    (said,) = [r.getMessage() for r in caplog.records if r.name == "s24compile"]
    assert said.startswith("an empty s24 state was loaded")
    assert "s24compile.Stateful(model)" in said
