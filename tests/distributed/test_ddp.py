"""DistributedDataParallel on two processes: sparse where blocks are compiled, and states that one rank alone has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import s24compile
from s24compile.errors import ModelError
from s24compile.weights import agreement
from tests.distributed.ranks import Ranks
from tests.distributed.training import Setup, loss_of, states, train


def loads(rank: int, world: int, by: list[int], how: str, fresh: bool) -> dict[str, Any]:
    """Trains, and loads the state of before: on the ranks `by`, into the same model or a new one."""
    agreement.PATIENCE_S = 2
    setup = Setup(options={"inner": "eager"}, steps=3)
    inner = setup.model()
    model = setup.replicated(inner) if how == "ddp" else setup.sharded(inner)
    train(setup, model, setup.optimizer_of(model), rank)
    saved = s24compile.state_dict(model)
    if fresh:
        torch._dynamo.reset()
        inner = setup.model()
        model = setup.replicated(inner) if how == "ddp" else setup.sharded(inner)
    else:
        train(setup, model, setup.optimizer_of(model), rank, first=3)
    if rank in by:
        s24compile.load_state_dict(model, saved)
    try:
        loss_of(model, rank, 6)
    except ModelError as error:
        return {"error": str(error)}
    return {"states": states(model)}


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("fresh", [True, False])
def test_raise_where_one_rank_alone_has_loaded(how: str, fresh: bool, ranks: Ranks) -> None:
    first, second = ranks.run(loads, by=[0], how=how, fresh=fresh)
    assert "rank 0 has loaded a sparse state, and rank 1 of its group none" in first["error"]
    assert "states" in second
    first, second = ranks.run(loads, by=[0, 1], how=how, fresh=fresh)
    assert first["states"] == second["states"]
    assert {state[1] for state in first["states"].values()} == {3}
