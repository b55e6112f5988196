"""The run of everything on a GPU machine, on a folder of five tests and without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpus import visible_device
from tests import conftest
from tests.kernels import prebuild

ROOT = Path(__file__).parents[1]
TESTS = """
import os, signal
from pathlib import Path
import pytest

def test_a():
    with Path("calls").open("a") as file:
        file.write("a")

def test_ab():
    assert Path("mended").exists(), "not yet"

@pytest.mark.skip(reason="not here")
def test_skipped(): ...

@pytest.fixture
def broken():
    assert Path("mended").exists(), "no fixture"

def test_broken(broken): ...

def test_that_takes_too_long():
    if not Path("mended").exists():
        os.kill(os.getpid(), signal.SIGALRM)  # what the timer does when the time is over
"""


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.gpu_suite", "--anywhere", "--no-build", "--jobs=0", "--commit=abc"]
    command += [f"--out={folder}", f"--state={folder}/state.json", f"--tests={folder}/test_five.py", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (folder / "gpu_suite.json").is_file(), done.stdout + done.stderr
    told: dict[str, Any] = json.loads((folder / "gpu_suite.json").read_text())
    assert told["closing"] in done.stdout.splitlines()[-1]
    return done.returncode, told


def test_keep_what_is_known_when_the_time_is_over_and_go_on_from_there(tmp_path: Path) -> None:
    (tmp_path / "test_five.py").write_text(TESTS)
    status, told = run(tmp_path)
    assert status == told["status"] == 3
    assert told["closing"].startswith("1 failed, 1 passed, 1 skipped, 1 error in ")
    assert set(told["failed"]) == {"test_five.py::test_ab", "test_five.py::test_broken"}
    assert told["failed"]["test_five.py::test_ab"] == "AssertionError: not yet"
    assert told["out_of_time"] == ["test_five.py::test_that_takes_too_long"]
    assert told["skipped"] == {"Skipped: not here": 1}
    assert told["commit"] == "abc"
    assert "no fixture" in (tmp_path / "gpu_suite_failures.txt").read_text()

    (tmp_path / "mended").touch()
    status, told = run(tmp_path, "--resume")
    assert (status, told["failed"], told["out_of_time"]) == (0, {}, [])
    assert told["closing"].startswith("4 passed, 1 skipped in ")
    assert (tmp_path / "calls").read_text() == "a", "what has passed is not run again"
    assert not (tmp_path / "gpu_suite_failures.txt").exists()


@pytest.mark.parametrize(("worker", "given", "wanted"), [("gw0", "", "0"), ("gw5", "", "1"), ("gw3", "4,7", "7")])
def test_share_the_gpus_among_workers(worker: str, given: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    conftest.keep_to_one_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == wanted
    assert visible_device(0) == wanted


def test_start_no_build_that_would_not_be_done_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []
    clock = iter([0.0, 0.0, 100.0, 200.0])
    monkeypatch.setattr(prebuild.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(prebuild.objects, "object_path", lambda kernel: "there" if kernel == "old" else None)
    monkeypatch.setattr(prebuild.build, "parallel_builds", lambda: 2)
    monkeypatch.setattr(prebuild.build, "build_all", batches.append)
    kernels: list[Any] = ["a", "old", "b", "c", "d", "e"]
    assert prebuild.build_within(kernels, 250) == 1
    assert batches == [["a", "b"], ["c", "d"]]
