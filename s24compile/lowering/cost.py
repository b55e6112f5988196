"""When does 2:4 pay? A table measured on the GPU, read at the nearest layer; nothing is modelled that nobody measured.

Legend: T tokens, D model width, F hidden width.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from s24compile.kernels.target import Target
from s24compile.layer import Layer


@dataclasses.dataclass(frozen=True)
class Measured:
    """One row: the time of a step dense (Inductor) over that of s24."""

    width: int
    hidden: int
    gated: bool
    tokens: int
    speedup: float


# H100 80GB HBM3, torch 2.11, bf16 autocast, forward and backward with packing; benchmarks/ffn.py, 2026-11-21.
# The two small layers waited for the CPU: launches, not kernels, are what was slow.
HOPPER = (
    Measured(768, 3072, False, 16384, 0.38),
    Measured(1024, 2816, True, 16384, 0.40),
    Measured(4096, 11008, True, 16384, 1.13),
)


FORCE = "min_speedup=0 forces it"
"""Ends every sentence of `refuse_slow`."""


def refuse_slow(layer: Layer, target: Target, min_speedup: float) -> str | None:
    """A sentence if `layer` is not known to reach `min_speedup` on `target`; None if it is, and always on a CPU."""
    if target.arch is None or min_speedup == 0:
        return None
    if target.arch != (9, 0):
        return f"there is no 2:4 kernel for {target} yet, only the reference, which is slower than dense; {FORCE}"
    if layer.dtype not in (torch.bfloat16, torch.float16):
        name = str(layer.dtype).removeprefix("torch.")
        return f"it computes in {name}, and the 2:4 kernels are for bf16 and fp16 (use autocast); {FORCE}"
    nearest = min(HOPPER, key=lambda row: _distance(row, layer))
    if nearest.speedup >= min_speedup:
        return None
    return (
        f"2:4 ran at {nearest.speedup:.2f} times dense speed in the nearest layer measured on an H100 "
        f"(D {nearest.width}, F {nearest.hidden}, {nearest.tokens} tokens); min_speedup={min_speedup:g} asks for more, "
        f"and {FORCE}"
    )


def _distance(row: Measured, layer: Layer) -> float:
    pairs = [(row.width, layer.width), (row.hidden, layer.hidden), (row.tokens, layer.tokens or row.tokens)]
    return sum(math.log(a / max(1, b)) ** 2 for a, b in pairs) + 0.1 * (row.gated != layer.gated)
