"""What the README tells people to type is what works: each command and each block of Python is run here or in CI."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables import readme, speeds
from s24compile.cli import main
from s24compile.kernels.costs import H100
from tests.on_cpu import ON_CPU

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line.partition("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()]
MAKE = [command for command in COMMANDS if command.startswith("make ")]
S24 = [command for command in COMMANDS if command.startswith("s24 ")]


def test_know_every_command() -> None:
    assert sorted(MAKE + S24) == sorted(COMMANDS)
    assert {"make demo", "make test"} <= set(MAKE)


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_run_each_block_of_python(index: int, tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text(blocks("python")[index])
    environment = {**ON_CPU, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, check=True, env=environment)


@pytest.mark.parametrize("command", S24)
def test_run_each_command(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)[1:]
    if words[0] in ("train", "tune-decay") and "--help" not in words:
        # The same command, smaller: what is on the line is parsed, then fewer and smaller steps win.
        words += ["--max_iters=3", "--n_layer=1", "--n_embd=32", "--inner=aot_eager", "--device=cpu"]
        words += ["--steps=4"] if words[0] == "tune-decay" else []
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0


@pytest.mark.parametrize("command", MAKE)
def test_make_what_ci_or_a_test_runs(command: str) -> None:
    words = command.split()[1:]
    plan = subprocess.run(
        ["make", "-n", *words, f"PYTHON={sys.executable}"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    runs = {
        "demo": "-m s24compile demo",
        "test": "-m pytest",
        "lint": "-m ruff check",
        "bench": "-m s24compile bench",
        "test-gpu": "-m tests.gpu_suite",
    }
    assert runs[words[0]] in plan
    # `make demo` is run by test_demo.py, and what `make test-gpu` starts by test_gpu_suite.py; benchmarks are
    # measurements, and their checks are tests of their own.
    assert words[0] in ("demo", "bench", "test-gpu") or command in (ROOT / ".ci/run").read_text()


def test_show_files_that_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), f"{link} is not there"


def read(path: str) -> Any:
    return json.loads((ROOT / path).read_text())


def phrases() -> list[str]:
    """What the README says in its prose about measurements, as the results have it."""
    demo, compiling = read("assets/demo.json"), read("benchmarks/results/compile_time.json")
    (long,) = read("benchmarks/results/quality_reported.json")["tables"]
    losses_of = {row["variant"]: row["loss"] for row in long["rows"]}
    least = min(loss for name, loss in losses_of.items() if name.startswith("fst")) - losses_of["dense"]
    small, middle, large = (f"{100 * speeds.share_of_step(size):.0f}%" for size in ("124m", "350m", "774m"))
    dense, sparse = (f"{demo['outcomes'][name]['validation_loss']:.3f}" for name in ("inductor", "s24"))
    return [
        f"Validation loss after {demo['config']['max_iters']} steps: {dense} dense, {sparse} with 2:4",
        f"{small} of the dense step of nanoGPT 124M, {middle} of that of 350M and {large} of that of 774M",
        f"In the long run ({long['tokens'] / long['parameters']:.0f} tokens a parameter)",
        f"each ends higher by {least:.4f} or more",
        f"Until about step {long['not_above_dense_until_step']} of these {long['steps']}",
        f"take less than {H100.host_bound_us} us",
        f"{compiling['ratio']:.2f} times for a GPT of {compiling['layers']} layers",
    ]


NO_MEASUREMENTS = (
    "2:4", "ICML 2024", "H100", "bf16", "fp32", "16384 tokens", "4-layer", "width 128", "s24compile", "Python 3.11",
    "2.11 or newer", "two rows of 64 tokens", "vocabulary of 256", "Apache-2.0", "run of 4000 steps", "less than 0.01",
    "docs/fp8.md",
)  # fmt: skip
"""What else has digits in it: names, settings, versions, bounds."""


def test_say_in_prose_what_was_measured_and_no_other_figure() -> None:
    text = re.sub(
        r"```.*?```|<!-- made.*?<!-- end -->|`[^`]*`|\(http[^)]*\)|arXiv [\d.]+", " ", README, flags=re.DOTALL
    )
    text = " ".join(text.split())
    for phrase in phrases():
        assert phrase in text
        text = text.replace(phrase, " ")
    for name in NO_MEASUREMENTS:
        text = text.replace(name, " ")
    left = re.findall(r".{0,40}\d.{0,40}", text)
    assert not left, f"figures that no result stands behind: {left}"


def test_have_the_tables_that_the_results_give() -> None:
    assert readme.made(README) == README, "run python -m benchmarks.tables"
    assert "| ---: |" in README
