"""Compile time of a 12-layer GPT: torch.compile(model, backend="s24") against Inductor dense. Bar: at most 1.5 times.

What is timed is the first training step (forward, backward, optimizer step) minus a later one, in a fresh process with
an empty TorchInductor cache. The variants alternate, and the best round of each counts: on a shared machine noise only
ever adds. Each variant is checked: the s24 one must hold 24 sparse weights, the dense one none, both a finite loss.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BACKENDS = ("inductor", "s24")
LAYERS = 12
BAR = 1.5


def measure(backend: str, layers: int) -> dict[str, float]:
    """Compiles and steps once in this process: seconds of compilation, and of a step after it."""
    import torch

    import s24compile
    from s24compile.demo.model import GPT, GPTConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=layers, n_head=4, n_embd=128)).to(device)
    tokens = torch.randint(0, 256, (4, 64), device=device)
    optimizer = torch.optim.AdamW(model.parameters())
    compiled = torch.compile(model, backend=backend)
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        loss = compiled(tokens, tokens)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        seconds.append(time.perf_counter() - started)
        if value != value:
            raise SystemExit(f"{backend}: the loss is not a number")
    sparse = len(s24compile.sparse_weights(model))
    if sparse != (2 * layers if backend == "s24" else 0):
        raise SystemExit(f"{backend}: {sparse} sparse weights in a GPT of {layers} layers")
    return {"compile_s": seconds[0] - min(seconds[1:]), "step_s": min(seconds[1:])}


def measure_fresh(backend: str, layers: int) -> dict[str, float]:
    """`measure` in a new process with an empty cache."""
    root = str(Path(__file__).parents[1])
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
        }
        command = [sys.executable, __file__, "--measure", backend, "--layers", str(layers)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> int:
    """Runs the rounds, prints the ratio, writes compile_time.json; 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default: benchmarks/results")
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps(measure(flags.measure, flags.layers)))
        return 0
    rounds: dict[str, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
    for index in range(flags.rounds):
        for backend in BACKENDS:
            rounds[backend].append(measure_fresh(backend, flags.layers))
            print(f"round {index + 1}: {backend:8} compiles in {rounds[backend][-1]['compile_s']:.1f} s", flush=True)
    best = {backend: min(r["compile_s"] for r in rounds[backend]) for backend in BACKENDS}
    ratio = best["s24"] / best["inductor"]
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from benchmarks import record

    measured = {"layers": flags.layers, "rounds": rounds, "compile_s": best, "ratio": ratio, "bar": BAR}
    path = record.write("compile_time", measured, *([flags.out] if flags.out else []))
    print(f"s24 / inductor = {ratio:.2f} (bar {BAR}): {best['s24']:.1f} s against {best['inductor']:.1f} s; {path}")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
