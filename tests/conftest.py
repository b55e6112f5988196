"""Fixtures of all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpus import visible_device
from tests.torchvision_ops import define_missing_operators


def keep_to_one_gpu() -> None:
    """Worker N of `pytest -n` uses GPU N modulo their number, so that several GPUs share the workers evenly."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    # NVML is asked, not CUDA, which reads the variable once, when it starts.
    if worker.isdigit() and (count := torch.cuda.device_count()) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible_device(int(worker) % count)


keep_to_one_gpu()
define_missing_operators()  # before any test imports transformers, timm or lightning


@pytest.fixture
def device() -> str:
    """The machine's best device: the same tests run on a CPU and on a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def on_device(device: str) -> Iterator[None]:
    """Makes every new tensor of a test on the best device."""
    if device != "cpu":  # the mode that a default device installs makes each call slower
        torch.set_default_device(device)
    yield
    torch.set_default_device(None)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, alone or in the suite, and compiles afresh."""
    torch.manual_seed(0)
    torch._dynamo.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device; elsewhere they say so."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="marked gpu, and torch.cuda.is_available() is False here"))
