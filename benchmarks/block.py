"""One transformer block of GPT-2 774M, forward and backward: s24 against Inductor dense, 16 sequences of 1024.

    python benchmarks/block.py                    feed-forward layer only, and with targets="linear"
    python benchmarks/block.py --widths 1600

bf16 autocast, fp32 master weights, packing once a step included, GPU time (benchmarks/training.py). Checked against
masked dense arithmetic before timing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import record
from benchmarks.training import DENSE, check, host_us, medians_ms, peak_bytes, variants
from s24compile.demo.model import Block, GPTConfig

NEEDS_GPU = True
BATCH, LENGTH, HEAD = 16, 1024, 64
BAR = 1.22


def measure(width: int, dense: tuple[str, ...]) -> dict[str, Any]:
    """One row of the table; the ratio is that of the feed-forward layer alone."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = GPTConfig(256, LENGTH, 1, width // HEAD, width, dropout=0.0, bias=False)
    x = torch.randn(BATCH, LENGTH, width, device="cuda", requires_grad=True)
    sparse: dict[str, dict[str, Any]] = {
        "s24": {"min_speedup": 0.0},
        "s24 linear": {"min_speedup": 0.0, "targets": "linear"},
        "s24 save": {"min_speedup": 0.0, "memory": "save"},
    }
    candidates = variants(Block(config).cuda(), dense, sparse)
    errors = {v.name: check(v, x) for v in candidates if v.sparse}
    times = medians_ms(candidates, x)
    best = min(times[d] for d in dense)
    return {
        "width": width,
        "forward_error": errors,
        "ms": times,
        "host_us": {v.name: host_us(v, x) for v in candidates},
        "peak_bytes": {v.name: peak_bytes(v, x) for v in candidates},
        "ratios": {name: best / times[name] for name in sparse},
        "bar": BAR,
    }


def main() -> int:
    """Measures, prints a row a width, writes results/block.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="*", type=int, default=[1280])
    parser.add_argument("--dense", nargs="*", default=["inductor"], choices=list(DENSE))
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    for width in given.widths:
        row = measure(width, tuple(given.dense))
        spelled = ", ".join(f"{n} {t:.3f} ms" for n, t in row["ms"].items())
        ratios = ", ".join(f"{n} x{r:.2f}" for n, r in row["ratios"].items())
        peaks = "/".join(f"{size / 1e6:.0f}" for size in row["peak_bytes"].values())
        print(f"block {width}: {spelled}; {ratios} (bar {BAR:.2f}); peak {peaks} MB", flush=True)
        record.add_rows("block", [row], ("width",), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
