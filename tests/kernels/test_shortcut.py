"""Ops skip the dispatcher only where nobody in it wants to see the call; in-place ones still move versions."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from s24compile.kernels.ops.shortcut import shorten

library = torch.library.Library("s24_shortcut_test", "DEF")
CALLS: list[str] = []


def _add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    CALLS.append("dispatched")
    return x + y


def _fill_(xs: list[torch.Tensor], value: float) -> None:
    CALLS.append("dispatched")
    for x in xs:
        x.detach().fill_(value)


library.define("add(Tensor x, Tensor y) -> Tensor")
library.define("fill_(Tensor(a!)[] xs, float value) -> ()")
library.impl("add", _add, "CompositeExplicitAutograd")
library.impl("fill_", _fill_, "CompositeExplicitAutograd")
torch.library.register_fake("s24_shortcut_test::add", lambda x, y: torch.empty_like(x), lib=library)
add, fill_ = torch.ops.s24_shortcut_test.add.default, torch.ops.s24_shortcut_test.fill_.default


def direct_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    CALLS.append("direct")
    return x + y


def direct_fill_(xs: list[torch.Tensor], value: float) -> None:
    CALLS.append("direct")
    for x in xs:
        x.numpy().fill(value)  # where no version counter sees it


shorten(add, direct_add)
shorten(fill_, direct_fill_, mutated=(0,))


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


def test_go_straight_to_the_kernel() -> None:
    assert torch.equal(add(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
    add(torch.nn.Parameter(torch.ones(2)), torch.ones(2))
    assert CALLS == ["direct", "direct"]


def test_move_versions_of_what_is_written() -> None:
    one, two = torch.ones(2), torch.ones(2)
    before = one._version, two._version
    fill_([one, two], 3.0)
    assert CALLS == ["direct"]
    assert one.tolist() == two.tolist() == [3.0, 3.0]
    assert one._version > before[0]
    assert two._version > before[1]


def test_dispatch_fake_tensors() -> None:
    with FakeTensorMode() as mode:
        x = torch.ones(2)
        assert add(x, x).shape == (2,)
    assert CALLS == []
    add(x, x)  # a subclass, also outside of its mode
    assert "direct" not in CALLS
    assert isinstance(x, torch._subclasses.FakeTensor)
    assert mode is x.fake_mode


def test_dispatch_under_a_mode() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            CALLS.append(f"watched {func}")
            return func(*args, **(kwargs or {}))

    x = torch.ones(2)
    with Watch():
        add(x, x)
    assert CALLS[0].startswith("watched s24_shortcut_test.add")


def test_show_the_op_to_a_profiler() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        add(torch.ones(2), torch.ones(2))
    assert CALLS == ["dispatched"]
    assert "s24_shortcut_test::add" in [event.name for event in profile.events()]


def test_dispatch_keywords() -> None:
    add(torch.ones(2), y=torch.ones(2))
    assert CALLS == ["dispatched"]
