"""A training step of nanochat's own GPT with its own optimizer: dense, with 2:4 hidden states, and with its own --fp8.

    git clone https://github.com/karpathy/nanochat /tmp/nanochat
    python benchmarks/nanochat.py /tmp/nanochat                        depths 12, 20, 26: results/nanochat.json
    python benchmarks/nanochat.py /tmp/nanochat --depths 20 --ways dense s24
    python benchmarks/nanochat.py /tmp/nanochat --depths 1 --width 128 --batch 1 --length 64 --vocabulary 256
                                                                       a tiny model, also on a CPU: nothing is timed

The checkout stays as it is, and nothing of it is kept here. Model, initialisation, precision and optimizer are made by
its code as its scripts/base_train.py makes them, with that script's defaults: 32 sequences of 2048 tokens, head
dimension 128, width 64 a layer, `torch.compile(model, dynamic=False)`; "s24" is that call with backend="s24" and
recipe="activation". "fp8" converts the linears that its --fp8 converts. A step is forward, backward, optimizer step and
zero_grad on random tokens. All ways start from the same weights, after a few dense steps, so that hidden states hold
something; their losses are finite and reported. No parallelism: one GPU.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

import s24compile
from benchmarks import record
from benchmarks.timing import gpu_ms, in_turns, queue_us, repeat

BARS = {20: 1.08, 26: 1.10}
"""Depth -> dense time of a step over that with 2:4 hidden states."""
HEAD, WIDTH_PER_LAYER = 128, 64
WAYS = ("dense", "s24", "s24 exact dW", "fp8", "fp8 s24")
"""The last one: its fp8 in attention and head, 2:4 hidden states in the feed-forward layers."""
OPTIONS: dict[str, Any] = {"recipe": "activation", "dense_until": 0, "min_speedup": 0.0}
WARM_UP = 20
"""Dense steps before the ways part."""

Step = Callable[[Tensor], Tensor]


def nanochat(checkout: Path, name: str) -> Any:
    """One of its modules."""
    if not (checkout / "nanochat" / "gpt.py").is_file():
        raise SystemExit(f"{checkout} is no checkout of karpathy/nanochat: it has no nanochat/gpt.py")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return importlib.import_module(f"nanochat.{name}")


def make(checkout: Path, depth: int, given: argparse.Namespace, device: str) -> nn.Module:
    """Its GPT of a depth, initialised by itself."""
    gpt = nanochat(checkout, "gpt")
    width = given.width or math.ceil(depth * WIDTH_PER_LAYER / HEAD) * HEAD
    heads = max(1, width // HEAD)
    config = gpt.GPTConfig(
        sequence_len=given.length, vocab_size=given.vocabulary, n_layer=depth, n_head=heads, n_kv_head=heads,
        n_embd=width,
    )  # fmt: skip
    with torch.device("meta"):
        model: nn.Module = gpt.GPT(config)
    model.to_empty(device=device)
    own: Any = model
    own.init_weights()
    return model


def to_fp8(checkout: Path, model: nn.Module, *, but_layers: bool) -> None:
    """What its --fp8 does; `but_layers`: not in the feed-forward layers."""
    fp8 = nanochat(checkout, "fp8")

    def fits(module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or (but_layers and ".mlp." in name):
            return False
        sizes = module.in_features, module.out_features
        return all(size % 16 == 0 for size in sizes) and min(sizes) >= 128

    config = fp8.Float8LinearConfig.from_recipe_name("tensorwise")
    fp8.convert_to_float8_training(model, config=config, module_filter_fn=fits)


def trainer(checkout: Path, model: nn.Module, way: str, inner: str) -> Step:
    """A function that does one training step on tokens [B, S + 1] and returns the loss."""
    if "fp8" in way:
        to_fp8(checkout, model, but_layers="s24" in way)
    own: Any = model
    optimizer = own.setup_optimizer()
    if "s24" in way:
        options = {**OPTIONS, "inner": inner, "gradient": "dense" if "exact" in way else "mvue"}
        run: Any = torch.compile(model, backend="s24", options=options, dynamic=False)
    else:
        run = torch.compile(model, backend=inner, dynamic=False)

    def step(tokens: Tensor) -> Tensor:
        loss: Tensor = run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(checkout: Path, depth: int, given: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    torch.manual_seed(0)
    model = make(checkout, depth, given, device)
    tokens = torch.randint(given.vocabulary, (4, given.batch, given.length + 1), device=device)
    warm = trainer(checkout, model, "dense", given.inner)
    for i in range(given.warm_up):
        warm(tokens[i % 4])
    losses: dict[str, float] = {}
    peaks: dict[str, int] = {}
    steps: dict[str, Step] = {}
    stats: dict[str, Any] = {}
    for way in given.ways:
        own = copy.deepcopy(model)
        steps[way] = trainer(checkout, own, way, given.inner)
        for i in range(4):
            losses[way] = steps[way](tokens[i]).item()
        assert math.isfinite(losses[way]), f"{way}: the loss is {losses[way]}"
        found = s24compile.activation_stats(own)
        assert len(found) == ("s24" in way) * depth, f"{way}: {len(found)} of {depth} layers are 2:4"
        if found:
            shares = [(layer.nonzero, layer.dropped) for layer in found.values()]
            stats[way] = {"nonzero": [a for a, _ in shares], "dropped": [b for _, b in shares]}
        if device == "cuda":
            peaks[way] = _peak_bytes(steps[way], tokens[0])
    row: dict[str, Any] = {
        "depth": depth, "width": _width(model), "batch": given.batch, "length": given.length,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": losses, "step_peak_bytes": peaks, "stats": stats, "bar": BARS.get(depth),
    }  # fmt: skip
    if device == "cuda":
        row["ms"] = in_turns({n: functools.partial(_burst_ms, s, tokens, given.steps) for n, s in steps.items()}, 5)
        row["host_ms"] = {n: _host_ms(s, tokens[0]) for n, s in steps.items()}
        if "dense" in row["ms"]:
            row["ratios"] = {n: row["ms"]["dense"] / ms for n, ms in row["ms"].items() if n != "dense"}
    return row


def _width(model: Any) -> int:
    width: int = model.config.n_embd
    return width


def _burst_ms(step: Step, tokens: Tensor, steps: int) -> float:
    step(tokens[0])
    return gpu_ms(lambda: repeat(lambda i: step(tokens[i % 4]), steps)) / steps


def _host_ms(step: Step, tokens: Tensor) -> float:
    """CPU milliseconds to queue a step, with nothing to wait for: no step can be faster."""
    return statistics.median(queue_us(functools.partial(step, tokens), 250_000_000) for _ in range(3)) / 1e3


def _peak_bytes(step: Step, tokens: Tensor) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(tokens)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def main() -> int:
    """Measures, prints a row a depth, writes results/nanochat.json where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of karpathy/nanochat")
    parser.add_argument("--depths", nargs="*", type=int, default=[12, 20, 26])
    parser.add_argument("--ways", nargs="*", default=["dense", "s24", "fp8"], choices=WAYS)
    parser.add_argument("--batch", type=int, default=32, help="sequences of a forward")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--width", type=int, default=0, help="model width; default: 64 a layer, as nanochat's")
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--steps", type=int, default=10, help="steps a burst")
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="dense steps before the ways part")
    parser.add_argument("--inner", default="inductor", choices=["inductor", "aot_eager"], help="what compiles graphs")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    for depth in given.depths:
        row = measure(given.checkout.resolve(), depth, given)
        print(f"depth {depth}, width {row['width']}, {row['parameters'] / 1e6:.0f}M", end="")
        for way, loss in row["loss"].items():
            timed = f"{row['ms'][way]:.1f} ms, peak {row['step_peak_bytes'][way] / 1e9:.2f} GB, " if "ms" in row else ""
            ratio = f"x{row['ratios'][way]:.3f}, " if way in row.get("ratios", {}) else ""
            print(f"; {way} {timed}{ratio}loss {loss:.4f}", end="")
        print(f"; bar {row['bar']}" if row["bar"] else "", flush=True)
        if "ms" in row:
            record.add_rows("nanochat", [row], ("depth", "width", "batch", "length"), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
