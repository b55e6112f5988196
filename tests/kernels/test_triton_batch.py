"""Tables of addresses are kept between calls, but not between a CUDA graph and anybody else."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from s24compile.kernels.pack import triton_many
from s24compile.kernels.stacks import Packing, Stacks
from s24compile.kernels.triton import batch
from s24compile.kernels.triton.batch import table

CPU = torch.device("cpu")
ENTRIES, TILES = ((10, 11), (20, 21), (30, 31)), (2, 0, 3)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_TABLES", {})
    monkeypatch.setattr(triton_many, "_KNOWN", {})
    monkeypatch.setattr(batch, "OF_GRAPHS", [])


def capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on as if the calls of a test on a CPU went into a CUDA graph."""
    monkeypatch.setattr(batch, "capturing", lambda device: True)


def test_say_which_program_works_for_which_tensor() -> None:
    entries, owners, programs = table(CPU, ENTRIES, TILES)
    assert entries.tolist() == [[10, 11, 0], [20, 21, 2], [30, 31, 2]]
    assert owners.tolist() == [0, 0, 2, 2, 2]
    assert programs == 5
    assert table(CPU, ENTRIES, TILES)[0] is entries


def test_throw_the_oldest_table_out_but_none_that_a_graph_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = table(CPU, ENTRIES, TILES)
    monkeypatch.setattr(batch, "_KEPT", 1)
    with monkeypatch.context() as inside:
        capture(inside)
        assert table(CPU, ENTRIES, TILES) is kept
    table(CPU, ENTRIES[:1], TILES[:1])
    assert table(CPU, ENTRIES, TILES) is not kept
    assert [kept] == batch.OF_GRAPHS


@pytest.mark.parametrize("captured", [False, True])
def test_keep_launches_but_not_those_of_a_graph(monkeypatch: pytest.MonkeyPatch, captured: bool) -> None:
    found = triton_many._Launches((), ())
    monkeypatch.setattr(triton_many, "_work_out", lambda *args: found)
    if captured:
        capture(monkeypatch)
    stacks = Stacks([torch.zeros(4, 4)], (1,), [], [torch.zeros(4, 2)], [], [], [])
    triton_many.pack_weights_(stacks, Packing("transposable", True, "sm90", "out_in"))
    assert list(triton_many._KNOWN.values()) == ([] if captured else [found])
    assert ([found] if captured else []) == batch.OF_GRAPHS


@pytest.mark.gpu
def test_read_a_kept_table_in_a_graph() -> None:
    device, out = torch.device("cuda", 0), torch.zeros(3, 3, dtype=torch.int64, device="cuda")
    kept = table(device, ENTRIES, TILES)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out.copy_(table(device, ENTRIES, TILES)[0])
    assert batch.OF_GRAPHS[0] is kept
    graph.replay()
    assert out.tolist() == [[10, 11, 0], [20, 21, 2], [30, 31, 2]]
