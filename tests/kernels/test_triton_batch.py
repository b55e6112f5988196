"""Tables of addresses are kept between calls, but not between a CUDA graph and anybody else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from s24compile.kernels.pack import triton_batch, triton_many
from s24compile.kernels.pack.triton_batch import table

CPU = torch.device("cpu")
ENTRIES, TILES = ((10, 11), (20, 21), (30, 31)), (2, 0, 3)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the calls of a test on a CPU went into a CUDA graph."""
    monkeypatch.setattr(triton_batch, "capturing", lambda device: True)
    monkeypatch.setattr(triton_many, "capturing", lambda device: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(triton_batch, "_REPLAYED", [])


def test_say_which_program_works_for_which_tensor() -> None:
    entries, owners, programs = table(CPU, ENTRIES, TILES)
    assert entries.tolist() == [[10, 11, 0], [20, 21, 2], [30, 31, 2]]
    assert owners.tolist() == [0, 0, 2, 2, 2]
    assert programs == 5
    assert table(CPU, ENTRIES, TILES)[0] is entries


def test_keep_no_table_of_a_graph_and_give_it_no_kept_one(captured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = table(CPU, ENTRIES, TILES)[0], table(CPU, ENTRIES, TILES)[0]
    assert first is not second
    assert len(triton_batch._REPLAYED) == 2, "replays read host memory that has gone"
    monkeypatch.undo()
    kept = table(CPU, ENTRIES, TILES)[0]
    assert kept is not first
    assert kept is not second


def test_keep_no_plan_of_a_graph(captured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_many, "_PLANS", {})
    monkeypatch.setattr(triton_many, "_plan", lambda *args: triton_many._Plan((), ()))
    call = [torch.zeros(4, 4)], (1,), [], [torch.zeros(4, 2)], [], [], [], "transposable", True, "sm90", "out_in"
    triton_many.pack_weights_(*call)
    assert not triton_many._PLANS


@pytest.mark.gpu
def test_fill_a_table_of_a_graph_at_replay_and_others_at_once() -> None:
    device, out = torch.device("cuda", 0), torch.zeros(3, 3, dtype=torch.int64, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(table(device, ENTRIES, TILES)[0])
    expected = [[10, 11, 0], [20, 21, 2], [30, 31, 2]]
    assert table(device, ENTRIES, TILES)[0].tolist() == expected
    for _ in range(2):
        out.zero_()
        graph.replay()
        assert out.tolist() == expected
