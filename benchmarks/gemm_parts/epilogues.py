"""What the fused epilogues cost beside the plain GEMM, against the time that their extra bytes would take alone.

    python -m benchmarks.gemm_parts.epilogues

GPT-2's first projections at 16384 tokens; writes results/epilogues.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks import record
from benchmarks.gemm_parts.operands import random_sparse
from benchmarks.gemm_parts.ours import activations
from benchmarks.gemm_parts.shapes import Shape, shapes
from benchmarks.timing import compare_us
from s24compile.kernels.gemm.cutlass import launch
from s24compile.kernels.gemm.cutlass.tuned import Choice

COPY_BYTES_PER_US = 3.0e6
"""Device copy, read + write, measured on an H100 80GB."""


def time_epilogues(shape: Shape, act: str = "gelu", choices: tuple[Choice | None, ...] = (None,)) -> dict[str, Any]:
    """Microseconds of fw1 plain, with activation (Z and H written), and with the derivative (Z read), also summed."""
    dtype, (m, n, k) = torch.bfloat16, (shape.m, shape.n, shape.k)
    s = random_sparse(m, k, dtype, "cuda")
    bs = activations(shape, dtype, 3)
    bias = torch.randn(m, device="cuda", dtype=dtype)
    zs = [torch.randn(n, m, device="cuda", dtype=dtype).t() for _ in range(3)]
    packed = s.packed()
    runs: dict[str, Any] = {}
    for choice in choices:
        tag = f" {choice.name}" if choice else ""
        runs |= {
            f"plain{tag}": lambda i, c=choice: launch.mm(packed, bs[i % 3], None, "col", dtype, c),
            f"act{tag}": lambda i, c=choice: launch.mm_act(packed, bs[i % 3], bias, act, "col", c),
            f"dact{tag}": lambda i, c=choice: launch.mm_dact(packed, bs[i % 3], zs[i % 3], act, "col", c),
            f"dact_sum{tag}": lambda i, c=choice: launch.mm_dact_sum(packed, bs[i % 3], zs[i % 3], act, "col", c),
        }
    times = compare_us(runs)
    return {"shape": [m, n, k], "act": act, "us": times, "extra_bytes_us": 2 * m * n / COPY_BYTES_PER_US}


def main() -> None:
    """Times, prints a row a shape, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    rows = []
    for shape in shapes(("gpt2",), (16384,)):
        if shape.role == "fw1":
            rows.append({"model": shape.model} | time_epilogues(shape))
            spelled = ", ".join(f"{name} {us:.1f}" for name, us in rows[-1]["us"].items())
            print(f"{rows[-1]['shape']} {spelled} us; extra bytes {rows[-1]['extra_bytes_us']:.1f} us", flush=True)
            record.write("epilogues", {"rows": rows}, given.out)


if __name__ == "__main__":
    main()
