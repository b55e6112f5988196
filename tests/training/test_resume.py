"""Kill -9 at a random moment of the example's training, resume from its last checkpoint, compare bit for bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.on_cpu import ON_CPU

ROOT = Path(__file__).parents[2]
# Two threads add up an embedding's gradient in any order: whole runs differ among themselves then.
ONE_THREAD = {**ON_CPU, "OMP_NUM_THREADS": "1"}
STEPS = 48  # a second mask search after step 40; STEP switches at 24 at the latest
SIZES = ["--steps", str(STEPS), "--checkpoint-every", "4", "--layers", "1", "--width", "32", "--batch", "4"]


def command(recipe, out, *more):
    return [sys.executable, "examples/nanogpt/train.py", "--recipe", recipe, *SIZES, "--out", str(out), *more]


def kill_after(line_start, words, delay):
    """Runs the example from its start, and kills it `delay` seconds after it has printed a line that starts so."""
    with subprocess.Popen(words, cwd=ROOT, env=ONE_THREAD, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(line_start):
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode in (-signal.SIGKILL, 0)


def saved_step(out):
    """The step of the last checkpoint."""
    return torch.load(out / "checkpoint.pt", weights_only=True)["step"]


def differences(one, two, path=""):
    """Where two checkpoints differ, by bits."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape
        return [] if same and torch.equal(one.view(-1).view(torch.uint8), two.view(-1).view(torch.uint8)) else [path]
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [path + " keys"]
        return [d for key in one for d in differences(one[key], two[key], f"{path}.{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(two):
            return [path + " length"]
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    return [] if one == two else [path]


@pytest.mark.parametrize("recipe", ["fst", "sste", "step"])
def test_resume_bit_for_bit_after_a_kill_at_any_moment(recipe, tmp_path):
    where = random.Random()  # another moment each time; the assertions name it
    step, delay = where.randrange(5, STEPS - 8), where.uniform(0, 0.05)
    whole = subprocess.run(
        command(recipe, tmp_path / "whole"), cwd=ROOT, env=ONE_THREAD, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    kill_after(f"step {step} ", command(recipe, tmp_path / "killed"), delay)
    if saved_step(tmp_path / "killed") == STEPS:  # this machine was done before the signal came
        step, delay = 5, 0.0
        kill_after(f"step {step} ", command(recipe, tmp_path / "killed"), delay)
    moment = f"killed {delay:.4f} s after step {step}, checkpoint of step {saved_step(tmp_path / 'killed')}"
    assert 0 < saved_step(tmp_path / "killed") < STEPS, moment
    resumed = subprocess.run(
        command(recipe, tmp_path / "killed", "--resume"),
        cwd=ROOT,
        env=ONE_THREAD,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    first = int(resumed[0].split()[1])
    assert first > 1, f"it started over: {moment}"
    assert resumed == whole[first - 1 :], f"losses and final weights are those of the run that was whole: {moment}"
    assert "2 sparse weights" in resumed[-1]
    checkpoints = [torch.load(tmp_path / out / "checkpoint.pt", weights_only=True) for out in ("whole", "killed")]
    assert differences(*checkpoints) == [], f"masks, counters, scales, moments, generators, phase: {moment}"
    state = checkpoints[0]["s24"]
    assert all(entry["recipe"] == recipe and entry["steps"] == STEPS for entry in state.values())
    if recipe == "step":
        switched = checkpoints[0]["optimizer"]["param_groups"][0]["switched_at"]
        assert switched is not None
        assert 5 <= switched <= 24, "T_min and T_max are 10 % and 50 % of the steps"
