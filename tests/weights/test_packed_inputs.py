"""What a graph's call asks for nothing again, and every sign by which it learns that it must."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from s24compile.compiler.rewriting import Slot
from s24compile.config import Config
from s24compile.training.hooks import watch_optimizers
from s24compile.weights.model_state import load_state_dict, refresh, set_phase, state_dict
from s24compile.weights.packed_inputs import PackedInputs
from s24compile.weights.packing import freshen
from s24compile.weights.registry import WEIGHTS
from tests.calls import count_calls
from tests.freshening import dense_values, operand_of, recorded_ops, request_for

pytestmark = pytest.mark.usefixtures("on_device")

FST = Config(mask_interval=3, gradient="dense")


class Net(nn.Module):
    """Two weights of two slots."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32, bias=False), nn.Linear(32, 16, bias=False)

    @property
    def weights(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.up.weight, self.down.weight


def inputs_of(net: Net, config: Config = FST) -> PackedInputs[Slot]:
    watch_optimizers()
    named = zip(("up.weight", "down.weight"), net.weights, strict=True)
    return PackedInputs([Slot(request_for(p, names=(name,)), (i,), config) for i, (name, p) in enumerate(named)])


def is_true(net: Net, inputs: PackedInputs[Slot]) -> bool:
    """Whether a call now gets M.W of both weights."""
    dense, packed = inputs.fresh(net.weights)
    assert not dense
    found = [dense_values(tuple(packed[4 * i : 4 * i + 2]), *p.shape) for i, p in enumerate(net.weights)]
    return all(
        torch.equal(one, p.detach() * WEIGHTS.get(p).mask)  # type: ignore[union-attr]
        for one, p in zip(found, net.weights, strict=True)
    )


def step(net: Net, fused: bool = False) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), fused=fused)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def edit(net: Net) -> None:
    with torch.no_grad():
        net.down.weight.mul_(-2.0)


CHANGES: dict[str, Callable[[Net], Any]] = {
    "step": step,
    "fused step": lambda net: step(net, fused=True),
    "edit": edit,
    "data": lambda net: setattr(net.up.weight, "data", torch.randn(32, 16)),
    "replaced": lambda net: setattr(net.up, "weight", nn.Parameter(torch.randn(32, 16))),
    "assigned": lambda net: net.load_state_dict(Net().state_dict(), assign=True),
    "loaded": lambda net: net.load_state_dict(Net().state_dict()),
    "restored": lambda net: load_state_dict(net, state_dict(net)),
    "refreshed": lambda net: (net.up.weight.data.add_(1.0), refresh(net, search=True)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_follow_each_change_that_shows(change: str) -> None:
    net = Net()
    inputs = inputs_of(net)
    for _ in range(2):
        for _ in range(3):
            assert is_true(net, inputs)
        CHANGES[change](net)


def test_follow_a_pack_by_another_graph() -> None:
    net = Net()
    inputs, other = inputs_of(net), inputs_of(net)
    for _ in range(3):
        assert is_true(net, inputs)
        edit(net)
        assert is_true(net, other)


def test_follow_phases() -> None:
    net = Net()
    inputs = inputs_of(net, Config(mask_interval=3, dense_after=1))
    assert is_true(net, inputs)
    step(net)
    dense, packed = inputs.fresh(net.weights)
    assert dense == set(inputs.slots) == inputs.dense_slots(net.weights)
    assert packed == []
    set_phase(net, "sparse")
    assert is_true(net, inputs)
    set_phase(net, "dense")
    assert inputs.fresh(net.weights)[0] == set(inputs.slots)


def test_serve_the_layers_of_a_model_one_after_the_other() -> None:
    layers = [Net() for _ in range(3)]
    inputs = inputs_of(layers[0])
    for i in range(3):
        assert all(is_true(layer, inputs) for layer in layers)
        edit(layers[i])
    del layers[1]
    layers.append(Net())
    assert all(is_true(layer, inputs) for layer in layers)


def test_pack_anew_in_each_call_under_always() -> None:
    net, always = Net(), Config(freshness="always")
    inputs = inputs_of(net, always)
    first, second = inputs.fresh(net.weights)[1], inputs.fresh(net.weights)[1]
    assert all(a is not b for a, b in zip(first, second, strict=True)), "each forward has buffers of its own"


def test_ask_again_for_few_calls_a_weight() -> None:
    torch.set_default_device(None)  # its mode would be called too
    parameters = [nn.Parameter(torch.randn(32, 16)) for _ in range(36)]
    inputs = PackedInputs([Slot(request_for(p), (i,), FST) for i, p in enumerate(parameters)])
    for _ in range(2):
        inputs.fresh(parameters)
    # benchmarks/host_time.py says what they cost.
    assert count_calls(lambda: inputs.fresh(parameters)) <= 4 * 36


def test_ask_each_weight_for_few_calls_where_something_has_moved() -> None:
    torch.set_default_device(None)
    parameters = [nn.Parameter(torch.randn(32, 16), requires_grad=False) for _ in range(36)]
    inputs = PackedInputs([Slot(request_for(p), (i,), FST) for i, p in enumerate(parameters)])
    other = Net()
    for _ in range(2):
        inputs.fresh(parameters)
        step(other)
    assert count_calls(lambda: inputs.fresh(parameters)) <= 20 * 36


def test_hold_no_weight_and_no_packed_tensor_alive() -> None:
    def forward(net: Net) -> list[weakref.ref[Tensor]]:
        return [weakref.ref(x) for x in (*net.weights, *inputs.fresh(net.weights)[1])]

    net = Net()
    inputs = inputs_of(net)
    forward(net)
    watched = forward(net)
    gc.collect()
    gc.disable()
    try:
        del net
        assert [ref() for ref in watched] == [None] * len(watched)
    finally:
        gc.enable()


def test_make_fake_buffers_for_fake_parameters() -> None:
    net = Net()
    inputs = inputs_of(net)
    with FakeTensorMode() as mode:
        fakes = tuple(mode.from_tensor(p) for p in net.weights)
    dense, packed = inputs.fresh(fakes)
    assert not dense
    assert len(packed) == 8
    assert all(isinstance(buffer, FakeTensor) for buffer in packed)
    assert is_true(net, inputs)


def test_need_nothing_without_slots() -> None:
    inputs: PackedInputs[Slot] = PackedInputs([])
    assert inputs.fresh((torch.zeros(2),)) == (frozenset(), [])


def test_pack_once_a_step_for_all_micro_batches() -> None:
    net = Net()
    inputs = inputs_of(net)
    with recorded_ops() as calls:
        for _ in range(3):
            for _ in range(4):
                assert is_true(net, inputs)
            step(net)
    assert [calls.count(name) for name in ("pack_weights_", "pack_weight_")] == [3, 0]


def test_share_buffers_with_who_asks_by_hand() -> None:
    net = Net()
    packed: list[Tensor] = inputs_of(net).fresh(net.weights)[1]
    by_hand = [b for p in net.weights for b in freshen(operand_of(p, config=FST), True)]
    assert all(a is b for a, b in zip(packed, by_hand, strict=True))
