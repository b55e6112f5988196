"""A training step under FSDP2, dense and 2:4, on all GPUs of one host, in one run.

    torchrun --nproc-per-node 2 benchmarks/distributed.py                       1B's and 8B's layers, 2 GPUs
    torchrun --nproc-per-node 4 benchmarks/distributed.py --shapes 8b --no-reshard
    NCCL_MAX_NCHANNELS=1 torchrun --nproc-per-node 4 benchmarks/distributed.py  few channels stand in for a slow network
    torchrun --nproc-per-node 2 benchmarks/distributed.py --shapes tiny         checks the script, on CPUs over gloo

transformers' Llama, compiled block by block, `fully_shard` of each block and of the rest, MixedPrecisionPolicy(bf16,
reduce fp32), fused AdamW, random tokens; --tokens of each rank. First it is checked that the ranks' masks are equal
after --check steps; then dense and 2:4 take turns. Rows go to benchmarks/results/distributed.json: milliseconds of a
step (median over turns, of the slowest rank), peak memory (of the fullest rank) and speed-up over dense.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

sys.path.insert(0, str(Path(__file__).parents[1]))

import s24compile
from benchmarks import record

NEEDS_GPU = True
SHAPES = {"1b": (2048, 8192, 32, 8, 16), "8b": (4096, 14336, 32, 8, 8), "tiny": (64, 128, 4, 2, 2)}
"""Name -> (D, F, heads, key and value heads, layers): of Llama 3.2 1B and Llama 3.1 8B, but for the layers."""
VOCABULARY = 32768
WAYS: dict[str, dict[str, Any] | None] = {"dense": None, "s24": {}, "s24 exact": {"recipe": "fst-exact"}}
"""Name -> options of the backend "s24"; None: Inductor alone."""


class Trainer:
    """One way to train one shape."""

    def __init__(self, name: str, options: dict[str, Any] | None, device: str, arguments: argparse.Namespace) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        width, hidden, heads, key_heads, layers = SHAPES[name]
        shape: dict[str, Any] = {
            "hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
            "num_attention_heads": heads, "num_key_value_heads": key_heads, "use_cache": False,
            "tie_word_embeddings": False, "attn_implementation": "sdpa",
        }  # fmt: skip
        torch.manual_seed(0)
        with torch.device(device):
            self.model: nn.Module = LlamaForCausalLM(LlamaConfig(**shape))
        how: dict[str, Any] = {} if options is None else {"backend": "s24", "options": {"min_speedup": 0.0, **options}}
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        given: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": not arguments.no_reshard}
        for block in self.model.model.layers:
            block.compile(dynamic=False, **how)
            fully_shard(block, **given)
        fully_shard(self.model, **given)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, tokens: Tensor) -> None:
        """One step on tokens [B, S]."""
        self.model(input_ids=tokens, labels=tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def masks(self) -> str:
        """All masks in short."""
        digest = hashlib.md5()
        for _, weight in sorted(s24compile.sparse_weights(self.model).items()):
            digest.update(weight.mask.cpu().numpy().tobytes())
        return digest.hexdigest()


def settle(device: str) -> None:
    """Waits for this rank's GPU, and for the other ranks."""
    if device == "cuda":
        torch.cuda.synchronize()
    dist.barrier()


def largest(number: float, device: str) -> float:
    """Over all ranks."""
    held = torch.tensor([number], dtype=torch.float64, device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return held.item()


def measure(shape: str, way: str, device: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    torch._dynamo.reset()
    trainer = Trainer(shape, WAYS[way], device, arguments)
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    length = min(4096, arguments.tokens)
    tokens = torch.randint(VOCABULARY, (arguments.tokens // length, length), generator=generator, device=device)
    for _ in range(arguments.check):
        trainer.step(tokens)
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, trainer.masks())
    assert len(set(found)) == 1, f"{way}: ranks have other masks after {arguments.check} steps"
    if WAYS[way] is not None:
        sparse = len(s24compile.sparse_weights(trainer.model))
        assert sparse == 3 * SHAPES[shape][4], f"{way}: {sparse} weights are sparse"
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(arguments.turns):
        settle(device)
        begin = time.perf_counter()
        for _ in range(arguments.steps):
            trainer.step(tokens)
        settle(device)
        times.append(largest((time.perf_counter() - begin) / arguments.steps * 1e3, device))
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return {
        "shape": shape, "way": way, "gpus": dist.get_world_size(), "reshard": not arguments.no_reshard,
        "tokens": arguments.tokens, "channels": os.environ.get("NCCL_MAX_NCHANNELS", ""),
        "step_ms": round(statistics.median(times), 3), "peak_gib": round(largest(peak, device), 3),
    }  # fmt: skip


def main() -> None:
    """Measures, prints and records the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1b", "8b"], choices=list(SHAPES))
    parser.add_argument("--ways", nargs="+", default=["dense", "s24"], choices=list(WAYS))
    parser.add_argument("--tokens", type=int, default=16384, help="of each rank and step")
    parser.add_argument("--check", type=int, default=20, help="steps before ranks' masks are compared")
    parser.add_argument("--steps", type=int, default=10, help="of one turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2, help="how often the ways take turns; the faster round counts")
    parser.add_argument("--no-reshard", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and "tiny" not in arguments.shapes else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for shape in arguments.shapes:
        for _ in range(arguments.rounds):
            for way in arguments.ways:
                row = measure(shape, way, device, arguments)
                known = rows.get((shape, way))
                rows[shape, way] = row if known is None or row["step_ms"] < known["step_ms"] else known
                gc.collect()
                if device == "cuda":
                    torch.cuda.empty_cache()
        dense = rows.get((shape, "dense"))
        for way in arguments.ways:
            row = rows[shape, way]
            if dense is not None:
                row["speedup"] = round(dense["step_ms"] / row["step_ms"], 3)
                row["memory"] = round(row["peak_gib"] / dense["peak_gib"], 3) if dense["peak_gib"] else None
            if dist.get_rank() == 0:
                print(row, flush=True)
    if dist.get_rank() == 0 and device == "cuda":
        record.add_rows("distributed", list(rows.values()), ("shape", "way", "gpus", "reshard", "tokens", "channels"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
