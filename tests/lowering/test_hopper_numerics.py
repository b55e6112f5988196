"""The graphs that lowering makes for Hopper compute the right numbers, wherever the tests run."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton's interpreter runs the kernels; it exists on Linux only")


@pytest.mark.parametrize(("program", "steps"), [("hopper_on_cpu.py", 20), ("fp8_on_cpu.py", 8)])
def test_train_as_lowered_for_hopper_on_this_cpu(program, steps):
    script = Path(__file__).with_name(program)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"checked {steps} steps" in done.stdout
