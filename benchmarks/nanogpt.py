"""A whole training step of a GPT of nanoGPT's shape: s24 against Inductor dense, batch 16 x 1024, fused AdamW.

    python benchmarks/nanogpt.py                  124M, 350M, 774M, feed-forward layers only; 774M with targets="linear"
    python benchmarks/nanogpt.py --sizes 124m --dense inductor
    python benchmarks/nanogpt.py --model nanoGPT/model.py        nanoGPT's own model and optimizer, from its repository

bf16 autocast, fp32 weights, no dropout, vocabulary 50304, random tokens. A step is forward, backward, optimizer step
and zero_grad; masks are searched every 40 steps inside the timed bursts. Losses of both are finite and reported.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import itertools
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import s24compile
from benchmarks import record
from benchmarks.timing import gpu_ms, in_turns, queue_us, repeat
from benchmarks.training import DENSE, FLOAT8
from s24compile.demo.model import GPT, GPTConfig

NEEDS_GPU = True
BATCH, LENGTH, VOCABULARY = 16, 1024, 50304
SIZES = {"124m": (12, 12, 768, 1.18), "350m": (24, 16, 1024, 1.18), "774m": (36, 20, 1280, 1.20)}
"""Name -> (layers, heads, width, bar)."""


def make(size: str, file: Path | None) -> nn.Module:
    """The model of a size, dropout and biases off: the demo's, or nanoGPT's out of its model.py."""
    layers, heads, width, _ = SIZES[size]
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "block_size": LENGTH,
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
    }
    if file is None:
        return GPT(GPTConfig(**shape, dropout=0.0, bias=False))
    sys.path.insert(0, str(file.parent))
    module = importlib.import_module(file.stem)
    made: nn.Module = module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False))
    return made


def trainer(model: nn.Module, compile_with: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that does one training step on tokens [B, S + 1] and returns the loss."""
    own = getattr(model, "configure_optimizers", None)
    if own is not None:
        optimizer = own(weight_decay=0.1, learning_rate=1e-4, betas=(0.9, 0.95), device_type="cuda")
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    run = torch.compile(model, dynamic=False, **compile_with)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def host_ms(step: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> float:
    """CPU milliseconds to queue a step, with nothing to wait for: no step can be faster."""
    return statistics.median(queue_us(functools.partial(step, tokens), 250_000_000) for _ in range(3)) / 1e3


def measure(
    size: str, dense: tuple[str, ...], targets: str, steps: int, gradient: str, file: Path | None
) -> dict[str, Any]:
    """One row of the table."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = make(size, file).cuda()
    tokens = torch.randint(VOCABULARY, (4, BATCH, LENGTH + 1), device="cuda")
    ways = {name: DENSE[name] for name in dense}
    ways["s24"] = {"backend": "s24", "options": {"targets": targets, "gradient": gradient, "min_speedup": 0.0}}
    losses, peaks, trainers = {}, {}, {}
    for name, how in ways.items():
        own = copy.deepcopy(model)
        trainers[name] = trainer(own, how)
        for i in range(4):
            losses[name] = trainers[name](tokens[i]).item()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        trainers[name](tokens[0])
        torch.cuda.synchronize()
        peaks[name] = torch.cuda.max_memory_allocated() - before
        assert math.isfinite(losses[name])
        assert bool(s24compile.sparse_weights(own)) == (name == "s24")

    def burst_ms(step: Callable[[torch.Tensor], torch.Tensor]) -> float:
        step(tokens[0])
        return gpu_ms(lambda: repeat(lambda i: step(tokens[i % 4]), steps)) / steps

    medians = in_turns({name: functools.partial(burst_ms, step) for name, step in trainers.items()}, 5)
    ratio = min(medians[d] for d in dense) / medians["s24"]
    return {
        "size": size, "targets": targets, "gradient": gradient, "ms": medians,
        "host_ms": {n: host_ms(s, tokens[0]) for n, s in trainers.items()},
        "loss": losses, "step_peak_bytes": peaks, "ratio": ratio,
        "bar": SIZES[size][3] if targets == "ffn" else 1.27, "model": "nanoGPT" if file else "demo",
    }  # fmt: skip


def main() -> int:
    """Measures, prints a row a model, writes results/nanogpt.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--dense", nargs="*", default=["inductor"], choices=[n for n in DENSE if n != FLOAT8])
    parser.add_argument("--targets", nargs="*", default=["ffn"], choices=["ffn", "linear"])
    parser.add_argument("--gradients", nargs="*", default=["mvue"], choices=["mvue", "auto", "dense"])
    parser.add_argument("--steps", type=int, default=40, help="steps a burst; 40 hold one mask search")
    parser.add_argument("--model", type=Path, help="nanoGPT's model.py; default: the demo's model of the same shape")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    for size in given.sizes:
        for targets, gradient in itertools.product(given.targets, given.gradients):
            row = measure(size, tuple(given.dense), targets, given.steps, gradient, given.model)
            spelled = ", ".join(f"{n} {t:.2f} ms" for n, t in row["ms"].items())
            queued = "/".join(f"{ms:.1f}" for ms in row["host_ms"].values())
            peaks = "/".join(f"{size / 1e9:.2f}" for size in row["step_peak_bytes"].values())
            print(
                f"{size} {targets:6} {gradient:5} {spelled}; x{row['ratio']:.3f} (bar {row['bar']:.2f}); "
                f"host {queued} ms, peak {peaks} GB",
                flush=True,
            )
            record.add_rows("nanogpt", [row], ("size", "targets", "gradient", "model"), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
