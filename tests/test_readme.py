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

from s24compile.cli import main
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
    runs = {"demo": "-m s24compile demo", "test": "-m pytest", "lint": "-m ruff check", "bench": "-m s24compile bench"}
    assert runs[words[0]] in plan
    # `make demo` is run by test_demo.py; benchmarks are measurements, and their checks are tests of their own.
    assert words[0] in ("demo", "bench") or command in (ROOT / ".ci/run").read_text()


def test_show_files_that_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), f"{link} is not there"


def test_print_the_numbers_that_were_measured() -> None:
    outcomes = json.loads((ROOT / "assets/demo.json").read_text())["outcomes"]
    compile_time = json.loads((ROOT / "benchmarks/results/compile_time.json").read_text())
    assert f"{outcomes['inductor']['validation_loss']:.3f} dense" in README
    assert f"{outcomes['s24']['validation_loss']:.3f} with 2:4" in README
    assert f"{compile_time['ratio']:.2f} times for a GPT of {compile_time['layers']} layers" in README


PLACES = {"gpt2-124m gelu": "at 124M", "gpt2-350m gelu": "at 350M", "gpt2-774m gelu": "at 774M",
          "gpt2-1558m gelu": "at 1558M", "geglu 1024-2816": "for the GEGLU",
          "llama-7b swiglu": "for Llama-7B"}  # fmt: skip


def exact_and_auto(rows: list[dict[str, Any]]) -> dict[str, set[str]]:
    """What was measured with other weight gradients, in the README's words."""
    return {
        way: {
            f"{row['ratios'][f's24 {way} dW']:.2f} {PLACES[row['layer']]}"
            for row in rows
            if f"s24 {way} dW" in row["ratios"]
        }
        for way in ("dense", "auto")
    }


def stated_exact_and_auto() -> dict[str, set[str]]:
    text = " ".join(README.partition('`gradient="dense"`')[2].partition("\n\n")[0].split())
    parts = dict(zip(("dense", "auto"), text.split('`gradient="auto"`'), strict=True))
    places = "|".join(PLACES.values())
    return {way: set(re.findall(rf"\d\.\d\d (?:{places})", part)) for way, part in parts.items()}


def test_print_the_speeds_that_were_measured() -> None:
    def read(name: str) -> Any:
        return json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())

    rows = [line for line in README.splitlines() if line.startswith("|")]

    def stated(part: str) -> str:
        (line,) = [row for row in rows if part in row]
        return line

    gemm = read("gemm")
    assert f"**{gemm['geomean']:.2f}** ({gemm['least']:.2f} to" in stated("geometric mean")
    assert f"| {len(gemm['shapes'])} FFN matrix products" in stated("geometric mean")
    names = {"gpt2-124m gelu": "124M GELU", "gpt2-350m gelu": "350M GELU", "gpt2-774m gelu": "774M GELU",
             "gpt2-1558m gelu": "1558M GELU", "geglu 1024-2816": "GEGLU 1024", "llama-7b swiglu": "Llama-7B",
             "llama-8b swiglu": "Llama-8B"}  # fmt: skip
    for row in read("ffn")["rows"]:
        line = stated(names[row["layer"]])
        assert f"**{row['ratio']:.2f}**" in line
    assert exact_and_auto(read("ffn")["rows"]) == stated_exact_and_auto()
    (block,) = read("block")["rows"]
    assert f"**{block['ratios']['s24']:.2f}**" in stated("whole block")
    own = [row for row in read("nanogpt")["rows"] if row["model"] == "nanoGPT" and row["targets"] == "ffn"]
    assert {row["size"] for row in own} == {"124m", "350m", "774m"}
    for row in own:  # a size with two gradients: the README states the faster
        if row["ratio"] < max(other["ratio"] for other in own if other["size"] == row["size"]):
            continue
        speed = f"{row['ms']['inductor']:.1f} ms | {row['ms']['s24']:.1f} ms | **{row['ratio']:.2f}**"
        assert speed in stated(f"nanoGPT {row['size'].upper()}")
