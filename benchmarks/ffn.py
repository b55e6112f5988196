"""One feed-forward layer, forward and backward: s24 against Inductor dense on the layers of GPT-2 and Llama.

    python benchmarks/ffn.py          every layer, against Inductor default and max-autotune-no-cudagraphs, and float8
    python benchmarks/ffn.py --layers gpt2 --dense inductor
    python benchmarks/ffn.py --layers llama --fp8           training in eight bits beside them

T = 16384 tokens, bf16 autocast, fp32 master weights, packing once a step included. TFLOP/s are dense-equivalent: 2 T D
F a linear, three times that with its backward. Checked against masked dense arithmetic before timing. "ratio" is over
the best bf16 dense, "over_float8" over float8 dense (torchao's tensorwise recipe: float8_dense.py). --gradients times
other values of the option `gradient` too: what the 2:4 weight gradient is worth. --also times any options, for
results/ffn_options.json:

    python benchmarks/ffn.py --layers 124m --also 'ste={"recipe": "ste", "gradient": "dense"}'
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import record
from benchmarks.training import DENSE, FLOAT8, check, host_us, medians_ms, peak_bytes, variants

NEEDS_GPU = True
TOKENS = 16384


class GeluMLP(nn.Module):
    """GPT-2's feed-forward layer."""

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down(nn.functional.gelu(self.up(x)))


class GatedMLP(nn.Module):
    """Llama's (SwiGLU) or the paper's (GEGLU)."""

    def __init__(self, width: int, hidden: int, act: Any) -> None:
        super().__init__()
        self.act = act
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.down(self.act(self.gate(x)) * self.up(x))


LAYERS: dict[str, tuple[str, int, int, float]] = {
    "gpt2-124m gelu": ("gelu", 768, 3072, 1.60),
    "gpt2-350m gelu": ("gelu", 1024, 4096, 1.55),
    "gpt2-774m gelu": ("gelu", 1280, 5120, 1.50),
    "gpt2-1558m gelu": ("gelu", 1600, 6400, 1.45),
    "geglu 1024-2816": ("geglu", 1024, 2816, 1.45),
    "llama-1b swiglu": ("swiglu", 2048, 8192, 1.40),
    "llama-3b swiglu": ("swiglu", 3072, 8192, 1.35),
    "llama-7b swiglu": ("swiglu", 4096, 11008, 1.40),
    "llama-8b swiglu": ("swiglu", 4096, 14336, 1.40),
}
"""Name -> (kind, D, F, bar: dense time over sparse time)."""


def make(kind: str, width: int, hidden: int) -> nn.Module:
    """The module of a row of LAYERS, on the GPU in fp32."""
    if kind == "gelu":
        return GeluMLP(width, hidden).cuda()
    act = nn.functional.gelu if kind == "geglu" else nn.functional.silu
    return GatedMLP(width, hidden, act).cuda()


def measure(name: str, dense: tuple[str, ...], also: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One row of the table: the defaults, and whatever options are wanted `also`."""
    kind, width, hidden, bar = LAYERS[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(TOKENS, width, device="cuda", requires_grad=True)
    sparse: dict[str, dict[str, Any]] = {"s24": {"min_speedup": 0.0}}
    sparse |= {f"s24 {name}": {"min_speedup": 0.0, **options} for name, options in also.items()}
    candidates = variants(make(kind, width, hidden), dense, sparse)
    narrow = {name for name, options in sparse.items() if options.get("precision") == "fp8"}
    error = max(check(v, x, v.name in narrow) for v in candidates if v.sparse)
    times = medians_ms(candidates, x)
    wide = [d for d in dense if d != FLOAT8] or list(dense)
    best = min(times[d] for d in wide)
    flop = 3 * (2 if kind == "gelu" else 3) * 2 * TOKENS * width * hidden
    return {
        "layer": name,
        "width": width,
        "hidden": hidden,
        "tokens": TOKENS,
        "forward_error": error,
        "ms": times,
        "host_us": {v.name: host_us(v, x) for v in candidates},
        "tflops": {n: flop / t / 1e9 for n, t in times.items()},
        "peak_bytes": {v.name: peak_bytes(v, x) for v in candidates},
        "ratio": best / times["s24"],
        "ratios": {n: best / times[n] for n in sparse},
        "over_float8": {n: times[FLOAT8] / times[n] for n in sparse if FLOAT8 in times},
        "bar": bar,
    }


def main() -> int:
    """Measures, prints a row a layer, writes results/ffn.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", default=[], help="parts of layer names; default: all")
    parser.add_argument("--dense", nargs="*", default=list(DENSE), choices=list(DENSE))
    parser.add_argument("--gradients", nargs="*", default=[], choices=["dense", "auto"], help="further values to time")
    parser.add_argument("--fp8", action="store_true", help="time precision=fp8 too")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=JSON", help="further options to time")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    also: dict[str, dict[str, Any]] = {f"{gradient} dW": {"gradient": gradient} for gradient in given.gradients}
    if given.fp8:
        also["fp8"] = {"precision": "fp8"}
    also |= {name: json.loads(options) for name, _, options in (word.partition("=") for word in given.also)}
    for name in LAYERS:
        if given.layers and not any(part in name for part in given.layers):
            continue
        row = measure(name, tuple(given.dense), also)
        spelled = ", ".join(f"{n} {t:.3f} ms" for n, t in row["ms"].items())
        queued = "/".join(f"{us:.0f}" for us in row["host_us"].values())
        memory = "/".join(f"{size / 1e6:.0f}" for size in row["peak_bytes"].values())
        over = "".join(f", {n} x{r:.2f} over float8" for n, r in row["over_float8"].items())
        print(
            f"{name:18} {spelled}; x{row['ratio']:.2f} (bar {row['bar']:.2f}){over}; host {queued} us, "
            f"peak {memory} MB",
            flush=True,
        )
        record.add_rows("ffn_options" if given.also else "ffn", [row], ("layer",), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
