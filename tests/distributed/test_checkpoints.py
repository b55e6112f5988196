"""torch.distributed.checkpoint under FSDP2: the same run goes on, on as many processes or on others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import s24compile
from tests.distributed.ranks import Ranks
from tests.distributed.training import Setup, digest, loss_of, seen, states, train

SETUP = Setup(options={"inner": "eager", "recipe": "fst-exact"}, steps=3)


def parts(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, "s24": s24compile.Stateful(model)}


def summary(model: torch.nn.Module) -> dict[str, Any]:
    found = seen(model)
    return {"weights": {n: digest(w) for n, w in found["weights"].items()}, "states": found["states"]}


def save(rank: int, world: int, path: str, go_on: bool) -> dict[str, Any]:
    """Three steps, a checkpoint, and perhaps three more."""
    model = SETUP.sharded(SETUP.model())
    optimizer = SETUP.optimizer_of(model)
    train(SETUP, model, optimizer, rank)
    dcp.save(parts(model, optimizer), checkpoint_id=path)
    saved = states(model)
    if go_on:
        train(SETUP, model, optimizer, rank, first=3)
    return {"saved": saved, **summary(model)}


def resume(rank: int, world: int, path: str, then: str = "") -> dict[str, Any]:
    """Into a fresh model, on any number of processes; three more steps, or another checkpoint."""
    model = SETUP.sharded(SETUP.model())
    optimizer = SETUP.optimizer_of(model)
    loaded = parts(model, optimizer)
    dcp.load(loaded, checkpoint_id=path)
    set_state_dict(model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
    if then:
        with torch.no_grad():
            loss_of(model, rank, 0)
        found = states(model)
        dcp.save(parts(model, optimizer), checkpoint_id=then)
        return {"loaded": found}
    train(SETUP, model, optimizer, rank, first=3)
    return summary(model)


def without_held(found: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    return {name: state[:3] for name, state in found.items()}


def test_resume_to_the_bit_on_as_many_processes(ranks: Ranks, tmp_path: Path) -> None:
    whole = ranks.run(save, path=str(tmp_path), go_on=True)
    assert len(whole[0]["states"]) == 3
    for expected, resumed in zip(whole, ranks.run(resume, path=str(tmp_path)), strict=True):
        assert resumed["weights"] == expected["weights"]
        assert resumed["states"] == expected["states"]


def test_keep_masks_and_counters_on_other_numbers_of_processes(ranks: Ranks, tmp_path: Path) -> None:
    saved = ranks.run(save, path=str(tmp_path / "two"), go_on=False)[0]["saved"]
    four = ranks.run(resume, world=4, path=str(tmp_path / "two"), then=str(tmp_path / "four"))
    one = ranks.run(resume, world=1, path=str(tmp_path / "four"), then=str(tmp_path / "one"))
    for answer in (*four, *one):
        assert without_held(answer["loaded"]) == without_held(saved)


@pytest.mark.filterwarnings("ignore")
def test_resume_after_a_rank_was_killed(ranks: Ranks, tmp_path: Path) -> None:
    expected = ranks.run(save, path=str(tmp_path), go_on=True)
    ranks.kill(1)
    with pytest.raises(AssertionError, match="have died"):
        ranks.run(save, path=str(tmp_path / "other"), go_on=True)
    for before, resumed in zip(expected, ranks.run(resume, path=str(tmp_path)), strict=True):
        assert resumed["weights"] == before["weights"]
