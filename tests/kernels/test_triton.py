"""Runs the checks of Triton's kernels in a process of its own: on a machine without a GPU Triton's interpreter must be
chosen before the kernels are imported, and no other test should run with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = [
    "triton_checks.py",
    "triton_format_checks.py",
    "triton_mask_checks.py",
    "triton_far_checks.py",
    "triton_activation_checks.py",
    "triton_fp8_checks.py",
]


@pytest.mark.parametrize("checks", CHECKS)
def test_triton_kernels_agree_with_their_references(checks):
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    path = str(Path(__file__).with_name(checks))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", path]
    done = subprocess.run(command, env={**os.environ, **interpreted}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout, "no check ran"
