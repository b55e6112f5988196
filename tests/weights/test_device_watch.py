"""Writes that nothing shows on a device that the host does not read: found by a comparison there, a little late.

A CPU stands for such a device: its comparisons are over when they have been launched, and so found at the next call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from s24compile.compiler.rewriting import Slot
from s24compile.config import Config
from s24compile.weights import device_watch
from s24compile.weights.contents import Contents
from s24compile.weights.packed_inputs import PackedInputs
from s24compile.weights.registry import WEIGHTS
from tests.freshening import dense_values, recorded_ops, request_for

pytestmark = pytest.mark.usefixtures("on_device", "watched")

FST = Config(mask_interval=3)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Has the host look at nothing by itself."""
    monkeypatch.setattr(device_watch, "WATCHED", (device,))
    monkeypatch.setattr(device_watch, "_WATCHES", {})


class Graph:
    """A compiled graph of some weights: what its calls get for each."""

    def __init__(self, *parameters: nn.Parameter, config: Config = FST) -> None:
        self.parameters = parameters
        slots = [Slot(request_for(p, names=(f"w{i}",)), (i,), config) for i, p in enumerate(parameters)]
        self.inputs = PackedInputs(slots)

    def __call__(self) -> list[Tensor]:
        """W~ of each weight."""
        _, packed = self.inputs.fresh(self.parameters)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [dense_values(tuple(packed[4 * i : 4 * i + 2]), *p.shape).clone() for i, p in enumerate(self.parameters)]

    def is_true(self) -> bool:
        """Whether the next call gets the present weights."""
        found = self()
        masked = [p.detach() * weight_of(p).mask for p in self.parameters]
        return all(torch.equal(one, expected) for one, expected in zip(found, masked, strict=True))


def weight_of(parameter: Tensor) -> Any:
    found = WEIGHTS.get(parameter)
    assert found is not None
    return found


def frozen(rows: int = 32, cols: int = 16) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, cols), requires_grad=False)


@pytest.mark.parametrize("written", [slice(None), (5, slice(None)), (slice(None), 9)], ids=["whole", "row", "column"])
def test_find_a_write_one_forward_later_and_say_so(written: Any, caplog: pytest.LogCaptureFixture) -> None:
    one, other = frozen(), frozen(16, 32)
    graph = Graph(one, other)
    with torch.no_grad():
        assert graph.is_true()
        assert graph.is_true()
        one.data[written] = 2.5
        assert not graph.is_true(), "the device has not answered"
        assert graph.is_true()
        one.data[written] = -0.5
        other.data.mul_(3.0)
        graph()
        assert graph.is_true(), "the first at once, the other when it was found"
    said = [r.getMessage() for r in caplog.records if "written where nothing shows it" in r.getMessage()]
    assert [text[:30] for text in said] == ["1 sparse weight(s) (w0, ...) w", "1 sparse weight(s) (w1, ...) w"]


def test_pack_a_weight_that_was_found_written_before_each_forward() -> None:
    parameter = frozen()
    graph = Graph(parameter)
    for i in range(6):
        with torch.no_grad():
            true = graph.is_true()
        assert true or i == 1, "the second forward came before the first answer"
        parameter.data.add_(1.0)


def test_leave_backwards_alone_that_wait_for_a_weight_packed_in_any_case() -> None:
    parameter = nn.Parameter(torch.randn(32, 16, dtype=torch.bfloat16))  # fp32 is the reference's on a GPU, too
    graph = Graph(parameter)
    graph()
    graph()
    graph()
    parameter.data.add_(1.0)
    graph()
    _, packed = graph.inputs.fresh((parameter,))
    versions = [buffer._version for buffer in packed]
    assert weight_of(parameter).contents.unseen > 0
    parameter.data.add_(1.0)
    assert graph.is_true()
    if torch.cuda.is_available():  # the reference, which stands for a kernel, writes by torch's own ops
        assert [buffer._version for buffer in packed] == versions


def test_compare_nothing_in_a_run_that_steps_after_each_forward() -> None:
    parameter = nn.Parameter(torch.randn(32, 16))
    optimizer, graph = torch.optim.SGD([parameter], lr=0.1), Graph(parameter)
    with recorded_ops() as calls:
        for _ in range(3):
            assert graph.is_true()
            parameter.grad = torch.ones(32, 16)
            optimizer.step()
    assert "copy_samples_" not in calls
    assert "compare_samples_" not in calls


def test_compare_once_a_pass_however_many_graphs_a_model_has() -> None:
    parameters = [frozen() for _ in range(4)]
    graphs = [Graph(p) for p in parameters]
    for graph in (*graphs, *graphs):  # once more, when none is new
        graph()
    with recorded_ops() as calls:
        for _ in range(3):
            for graph in graphs:
                graph()
    assert calls.count("compare_samples_") == 3
    parameters[2].data.add_(1.0)
    for _ in range(2):
        for graph in graphs:
            graph()
    assert all(graph.is_true() for graph in graphs)


def test_find_writes_between_forwards_in_and_out_of_inference_mode() -> None:
    parameter = nn.Parameter(torch.randn(32, 16))
    graph = Graph(parameter)
    for _ in range(2):
        with torch.inference_mode():
            assert graph.is_true()
            assert graph.is_true()
        assert graph.is_true()
    with torch.inference_mode():
        parameter.data.add_(1.0)
        graph()
    assert graph.is_true()


def test_take_no_step_for_an_unseen_write() -> None:
    student, teacher = nn.Parameter(torch.randn(32, 16)), frozen()
    optimizer, graphs = torch.optim.SGD([student], lr=0.1), (Graph(student), Graph(teacher))
    for _ in range(5):
        for _ in range(2):  # micro-batches
            assert all(graph.is_true() for graph in graphs)
        student.grad = torch.ones(32, 16)
        optimizer.step()
        with torch.no_grad():
            teacher.lerp_(student, 0.5)
    assert weight_of(student).contents.unseen == 0
    assert weight_of(teacher).contents.unseen == 0


@pytest.mark.parametrize("change", ["step", "edit", "move", "die"])
def test_forget_samples_of_contents_that_are_gone(change: str) -> None:
    one, other = nn.Parameter(torch.randn(32, 16)), frozen()
    graph, watching = Graph(one), Graph(other)
    optimizer = torch.optim.SGD([one], lr=0.1)
    for _ in range(3):
        graph()
        watching()
    assert isinstance(weight_of(one).contents.sample, Tensor)
    changes: dict[str, Callable[[], Any]] = {
        "step": lambda: (setattr(one, "grad", torch.ones(32, 16)), optimizer.step()),
        "edit": lambda: one.detach().add_(1.0),
        "move": lambda: setattr(one, "data", torch.randn(32, 16)),
        "die": lambda: None,
    }
    changes[change]()
    if change == "die":
        del one, graph, optimizer
    for _ in range(3):
        assert watching.is_true()
    if change != "die":
        assert graph.is_true()
        assert weight_of(one).contents.unseen == 0


def test_ask_the_device_once_before_baking(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = frozen()
    Graph(parameter)()
    weight = weight_of(parameter)
    parameter.data.copy_(torch.randn(32, 16))
    best = torch.ops.s24.transposable_patterns(parameter.detach())
    assert torch.equal(weight.next_patterns(parameter), best)
    monkeypatch.setattr(Contents, "differs_from", lambda self, parameter: pytest.fail("it is known by now"))
    assert torch.equal(weight.next_patterns(parameter), best)
