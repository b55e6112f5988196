"""A whole training step of transformers' LlamaForCausalLM: bf16 dense, float8 dense and s24, in one run.

    python benchmarks/llama.py                         1B, 3B and 8B's layers, as many as fit
    python benchmarks/llama.py --shapes 8b --ways bf16 float8 s24 --profile

bf16 autocast, fp32 weights, fused AdamW, 4 x 4096 random tokens, transformers' own code. float8 dense converts every
linear but the head: by torchao's tensorwise recipe where it is installed, else by `benchmarks/float8_dense.py`. With
--profile the kernels of a step of each way are compared with those of the first, part by part.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import s24compile
from benchmarks import record, step_profile, timing

NEEDS_GPU = True
LENGTH, VOCABULARY = 4096, 32768
SHAPES = {"1b": (2048, 8192, 32, 8, 16), "3b": (3072, 8192, 24, 8, 8), "8b": (4096, 14336, 32, 8, 4)}
"""Name -> (D, F, heads, key and value heads, layers): of Llama 3.2 1B and 3B and Llama 3.1 8B, but for the layers."""
WAYS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "float8": {"float8": True},
    "s24": {"options": {}},
    "s24 auto": {"options": {"gradient": "auto"}},
    "s24 exact": {"options": {"recipe": "fst-exact"}},
    "s24 fp8": {"options": {"precision": "fp8"}},
    "s24 fp8 + float8": {"options": {"precision": "fp8"}, "float8": "attention"},
}
"""Name -> options of the backend "s24" (Inductor alone without), and which linears are float8 dense."""


def make(name: str) -> nn.Module:
    """The model, on the GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, hidden, heads, key_heads, layers = SHAPES[name]
    shape: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": key_heads, "vocab_size": VOCABULARY, "max_position_embeddings": LENGTH,
        "use_cache": False, "tie_word_embeddings": False, "attn_implementation": "sdpa",
    }  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        return LlamaForCausalLM(LlamaConfig(**shape))


def trainer(model: nn.Module, way: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """A function that does one training step on tokens [B, S] and returns the loss."""
    if way.get("float8"):
        from benchmarks.float8_dense import convert

        skipped = ("lm_head", "mlp") if way["float8"] == "attention" else ("lm_head",)
        convert(model, lambda name: not any(part in name for part in skipped))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    how: dict[str, Any] = {}
    if "options" in way:
        how = {"backend": "s24", "options": {"min_speedup": 0.0, **way["options"]}}
    run = torch.compile(model, dynamic=False, **how)

    def step(tokens: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = run(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(shape: str, name: str, batch: int, steps: int, profiled: bool) -> dict[str, Any]:
    """One way to train one shape: a model of its own, freed afterwards (8B's layers do not fit twice)."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    model = make(shape)
    tokens = torch.randint(VOCABULARY, (4, batch, LENGTH), device="cuda")
    step = trainer(model, WAYS[name])
    begin = time.perf_counter()
    losses = [step(tokens[i % 4]).item() for i in range(4)]
    first_s = time.perf_counter() - begin
    assert all(map(math.isfinite, losses)), losses
    torch.cuda.reset_peak_memory_stats()
    step(tokens[0])
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()

    def burst() -> None:
        for i in range(steps):
            step(tokens[i % 4])

    ms = timing.in_turns({name: functools.partial(timing.gpu_ms, burst)}, 3)[name] / steps
    row = {
        "shape": shape, "way": name, "layers": SHAPES[shape][-1], "tokens": batch * LENGTH, "ms": ms,
        "peak_bytes": peak, "losses": losses, "sparse": len(s24compile.sparse_weights(model)), "first_s": first_s,
        "host_ms": timing.queue_us(lambda: step(tokens[0]), timing.CYCLES_PER_US * 250_000) / 1e3,
    }  # fmt: skip
    if profiled:
        row["profile"] = step_profile.profile_steps(lambda i: step(tokens[i % 4]))
    return row


def main() -> int:
    """Measures, prints a row a way, writes results/llama.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--batch", type=int, default=4, help="rows of 4096 tokens")
    parser.add_argument("--steps", type=int, default=10, help="steps a burst")
    parser.add_argument("--profile", action="store_true", help="compare the kernels of each way with the first's")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64
    for shape in given.shapes:
        rows: list[dict[str, Any]] = []
        for name in given.ways:
            row = measure(shape, name, given.batch, given.steps, given.profile)
            rows.append(row)
            row["ratio"] = rows[0]["ms"] / row["ms"]
            print(
                f"{shape} {name:18}{row['ms']:9.2f} ms x{row['ratio']:.3f}; host {row['host_ms']:.1f} ms, "
                f"peak {row['peak_bytes'] / 1e9:.1f} GB, loss {row['losses'][-1]:.3f}, {row['sparse']} sparse weights",
                flush=True,
            )
            if given.profile and len(rows) > 1:
                print(step_profile.report((rows[0]["way"], name), rows[0]["profile"], row["profile"]), flush=True)
        for row in rows:
            if "profile" in row:
                row["profile"] = step_profile.as_json(row["profile"])
        record.add_rows("llama", rows, ("shape", "way"), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
