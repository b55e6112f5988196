"""The examples, run as their docstrings say, for a few steps. examples/nanogpt is run by test_demo.py."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from s24compile import errors, register_with_accelerate

ROOT = Path(__file__).parents[1]
# (folder, what it needs besides torch, sparse weights of one layer)
EXAMPLES = [
    ("hf_llama", ("transformers", "accelerate"), 3),
    ("accelerate_gpt", ("accelerate",), 2),
    ("plain_loop", (), 2),
]


def need(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'{module} is not installed: pip install -e ".[examples]"')


RUNS = [(*example, ()) for example in EXAMPLES] + [("hf_llama", ("transformers", "accelerate"), 3, ("--in-place",))]


@pytest.mark.parametrize(("name", "modules", "weights", "flags"), RUNS, ids=[f"{r[0]}{''.join(r[3])}" for r in RUNS])
def test_train_sparse_and_lower_the_loss(
    name: str, modules: tuple[str, ...], weights: int, flags: tuple[str, ...], tmp_path: Path
) -> None:
    need(*modules)
    command = [sys.executable, str(ROOT / f"examples/{name}/train.py"), "--steps", "8", "--layers", "1", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    told = re.fullmatch(r"loss ([\d.]+) -> ([\d.]+), (\d+) sparse weights", done.stdout.splitlines()[-1])
    assert told is not None, done.stdout
    first, last, sparse = float(told[1]), float(told[2]), int(told[3])
    assert sparse == weights
    assert first > 5.2, "at first every byte is equally likely: ln 256 = 5.5"
    assert last < first - 0.5


def test_run_every_example_somewhere() -> None:
    folders = {path.parent.name for path in (ROOT / "examples").glob("*/*.py")}
    assert folders == {"nanogpt", *(name for name, *_ in EXAMPLES)}


def test_register_the_name_with_accelerate_once() -> None:
    need("accelerate")
    from accelerate.utils import DynamoBackend, TorchDynamoPlugin

    register_with_accelerate()
    before = list(DynamoBackend)
    register_with_accelerate()
    assert list(DynamoBackend) == before
    assert TorchDynamoPlugin(backend="s24").to_dict()["backend"] == "s24"
    assert DynamoBackend("INDUCTOR") is DynamoBackend.INDUCTOR


def test_say_that_accelerate_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate.utils", None)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(errors.ModelError, match="pip install accelerate"):
        register_with_accelerate()
