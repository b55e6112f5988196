"""Runs triton_checks.py in a process of its own: on a machine without a GPU Triton's interpreter must be chosen before
the kernels are imported, and no other test should run with it."""

import os
import subprocess
import sys
from pathlib import Path

import torch

CHECKS = Path(__file__).with_name("triton_checks.py")


def test_triton_kernels_agree_with_their_references():
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(CHECKS)]
    done = subprocess.run(command, env={**os.environ, **interpreted}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, "no check ran"
