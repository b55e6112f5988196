"""Compiled kernels are found again by all that Triton specialises them for, and get addresses instead of tensors."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from s24compile.kernels.triton import launch
from s24compile.kernels.triton.tiles import Tile

DEVICE = torch.device("cuda", 0)


class Kernel:
    """Counts compilations and launches as a Triton kernel would make them."""

    arg_names = ("x", "size", "BLOCK")

    def __init__(self) -> None:
        self.compiled: list[tuple[object, ...]] = []
        self.launched: list[tuple[object, ...]] = []

    def __getitem__(self, grid):
        def compile_and_run(*args, **options):
            self.compiled.append((grid, args, options))
            return Compiled(self)

        return compile_and_run


class Compiled:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args, stream: self.kernel.launched.append((grid, args, stream))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 77, raising=False)
    monkeypatch.setattr(launch, "_READY", {})
    return Kernel()


def call(kernel, x, size, block=64, tile=None):
    launch._launch(kernel, 3, tile or Tile(1, 1, 4), DEVICE, (x, size), {"BLOCK": block})


def test_compile_once_and_then_launch_with_addresses(kernel):
    x = torch.zeros(64)
    call(kernel, x, 40)
    call(kernel, x, 72)
    assert len(kernel.compiled) == 1
    assert kernel.launched == [((3, 1, 1), (x.data_ptr(), 72, 64), 77)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"size": 40}, {"size": 48}, id="a multiple of 16"),
        pytest.param({"size": 40}, {"size": 1}, id="one"),
        pytest.param({"size": 40}, {"size": 1 << 40 | 8}, id="more than 32 bits"),
        pytest.param({"x": torch.zeros(8)}, {"x": torch.zeros(9)[1:]}, id="an address that is not aligned"),
        pytest.param({"x": torch.zeros(8)}, {"x": torch.zeros(8, dtype=torch.float16)}, id="a dtype"),
        pytest.param({"block": 64}, {"block": 128}, id="a constant"),
        pytest.param({"tile": Tile(1, 1, 4)}, {"tile": Tile(1, 1, 8)}, id="warps"),
        pytest.param({"tile": Tile(1, 1, 4)}, {"tile": Tile(1, 1, 4, 96)}, id="a limit of registers"),
    ],
)
def test_compile_anew_for_what_triton_tells_apart(kernel, first, second):
    same = {"x": torch.zeros(8), "size": 40}
    call(kernel, **(same | first))
    call(kernel, **(same | second))
    assert len(kernel.compiled) == 2


def test_launch_nothing_for_no_programs(kernel):
    launch.launch(kernel, 0, Tile(1, 1, 4), torch.device("cpu"), torch.zeros(1), 1, BLOCK=1)
    assert not kernel.compiled
