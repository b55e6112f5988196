"""When does 2:4 pay? Layers measured on the GPU, and a roofline that carries them to other sizes and token counts.

Legend: T tokens, D model width, F hidden width.

Two things can make 2:4 slower than dense. Few tokens: packing and pruning are passes over memory that few operations
pay for. And little work per launch: a 2:4 layer costs the host more than a dense one, and a GPU that waits for its host
gains nothing from faster kernels.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from s24compile.graphs.layer import Layer
from s24compile.kernels.target import Target


@dataclasses.dataclass(frozen=True)
class Measured:
    """One row: GPU microseconds of a step, forward and backward with packing, dense (Inductor) and 2:4."""

    width: int
    hidden: int
    gated: bool
    tokens: int
    dense_us: float
    sparse_us: float

    @property
    def layer(self) -> Layer:
        """What was measured."""
        return Layer(self.width, self.hidden, self.gated, self.tokens, torch.bfloat16)


# H100 80GB HBM3, torch 2.11, bf16 autocast, fp32 master weights; benchmarks/ffn.py, 2026-11-24 and 26.
HOPPER = (
    Measured(768, 3072, False, 16384, 929, 720),
    Measured(1024, 4096, False, 16384, 1443, 1020),
    Measured(1280, 5120, False, 16384, 2253, 1588),
    Measured(1600, 6400, False, 16384, 3279, 2504),
    Measured(1024, 2816, True, 16384, 1558, 1217),
    Measured(4096, 11008, True, 16384, 20962, 14081),
    Measured(4096, 14336, True, 16384, 26948, 18480),
)
HOST_BOUND_US = 580
"""2:4 layers shorter than this left the GPU waiting: a block of GPT-2 124M took its host 2.3 ms to launch (1.6 dense),
which is what it takes the GPU at 13 000 tokens (benchmarks/nanogpt.py, 2026-11-24)."""
GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Inductor's modes that replay CUDA graphs, where launches cost nothing."""

DENSE_FLOPS_PER_US, SPARSE_FLOPS_PER_US = 0.706e9, 1.058e9
"""Dense-equivalent rates of GEMMs at 16384 tokens, cuBLAS and ours: geometric means of benchmarks/results/gemm.json."""
BYTES_PER_US = 3.0e6
"""Device memory of an H100 80GB, measured with a copy."""
LAUNCH_US = 3.0
"""What a kernel takes at least, from one to the next."""
DW_DENSE_FLOPS_PER_US, DW_SPARSE_FLOPS_PER_US = 0.735e9, 1.008e9
"""The same of the weight gradients of GPT-2's layers alone."""
MVUE_BYTES_PER_US = 2.5e6
"""Of `mvue_pack`, 16384 x 3072 (benchmarks/results/memory_kernels.json)."""
MVUE_FROM = math.ceil(3.125 / MVUE_BYTES_PER_US / (2 / DW_DENSE_FLOPS_PER_US - 2 / DW_SPARSE_FLOPS_PER_US))
"""Input features K from which dW = MVUE(dZ^T) X takes less time than dZ^T X: pruning moves 3.125 bytes per element of
dZ [T, N], and its 2:4 GEMM saves the difference of the two rates for 2 T N K operations. About 1700 on an H100."""

FORCE = "min_speedup=0 forces it"
"""Ends every sentence of `refuse_slow`."""


def refuse_slow(layer: Layer, target: Target, min_speedup: float, mode: str | None = None) -> str | None:
    """A sentence if `layer` is not expected to reach `min_speedup` on `target`; None if it is, and always on a CPU."""
    if target.arch is None or min_speedup == 0:
        return None
    if target.arch != (9, 0):
        return f"no 2:4 layer has been measured on {target}, and none is known to pay there; {FORCE}"
    if layer.dtype not in (torch.bfloat16, torch.float16):
        name = str(layer.dtype).removeprefix("torch.")
        return f"it computes in {name}, and the 2:4 kernels are for bf16 and fp16 (use autocast); {FORCE}"
    nearest = min(HOPPER, key=lambda row: _distance(row, layer))
    dense_us, sparse_us = estimate_us(layer, nearest)
    source = f"from D {nearest.width}, F {nearest.hidden}, {nearest.tokens} tokens measured on an H100"
    if sparse_us < HOST_BOUND_US and mode not in GRAPH_MODES:
        return (
            f"its 2:4 kernels would take {sparse_us:.0f} us a step ({source}), and below {HOST_BOUND_US} us the GPU "
            "waits for the host, which launches dense layers faster; CUDA graphs (mode='reduce-overhead') help, and "
            f"{FORCE}"
        )
    if dense_us / sparse_us >= min_speedup:
        return None
    return (
        f"2:4 is expected at {dense_us / sparse_us:.2f} times dense speed ({source}); min_speedup={min_speedup:g} asks "
        f"for more, and {FORCE}"
    )


def estimate_us(layer: Layer, nearest: Measured) -> tuple[float, float]:
    """(dense, 2:4) GPU microseconds of a step of `layer`: its roofline, in proportion to the nearest measured layer's.

    Without a token count, that of the measured layer.
    """
    layer = layer if layer.tokens is not None else dataclasses.replace(layer, tokens=nearest.tokens)
    dense, sparse = roofline_us(layer)
    dense_there, sparse_there = roofline_us(nearest.layer)
    return nearest.dense_us * dense / dense_there, nearest.sparse_us * sparse / sparse_there


def roofline_us(layer: Layer) -> tuple[float, float]:
    """(dense, 2:4) microseconds by operations, bytes and launches.

    Bytes are those that the GEMMs' own time does not cover. Of a linear: casts of weights and their gradients where it
    is dense; packing both ways, or one way and unpacking, and pruning of gradients where it is 2:4. Of the activation:
    a pass forward and one backward where no epilogue holds it; else Z beside H in one epilogue, and Z read in another.
    """
    assert layer.tokens is not None
    up = layer.hidden * (2 if layer.gated else 1)
    linears = [
        (layer.width, up, layer.first, layer.dw[0]),
        (layer.hidden, layer.width, layer.last, layer.dw[1]),
    ]
    turned = layer.last and layer.dx == "sparse"
    forward = 2.0 * layer.tokens * (up if layer.first else up + layer.hidden)
    backward = 2.0 * layer.tokens * (up if turned else 2 * up + layer.hidden)
    passes = 2.0 * layer.tokens * (3 * up + 2 * layer.hidden)
    dense = sum(_dense_us(layer.tokens, k, n) for k, n, *_ in linears) + passes / BYTES_PER_US
    sparse = sum(
        _sparse_us(layer.tokens, k, n, layer.dx, dw) if chosen else _dense_us(layer.tokens, k, n)
        for k, n, chosen, dw in linears
    )
    sparse += (forward + backward) / BYTES_PER_US
    return dense + 10 * LAUNCH_US, sparse + 10 * LAUNCH_US


def _dense_us(tokens: int, k: int, n: int) -> float:
    """A linear [n, k] without 2:4, forward and backward."""
    return 6.0 * tokens * k * n / DENSE_FLOPS_PER_US + 12.0 * k * n / BYTES_PER_US


def _sparse_us(tokens: int, k: int, n: int, dx: str, dw: str) -> float:
    """The same of a 2:4 linear."""
    gemms_24 = 1 + (dx != "dense") + (dw == "mvue")
    pruned = 3.125 * tokens * n * ((dx == "mvue") + (dw == "mvue"))
    packed = (6.25 if dx == "sparse" else 7.25) * k * n
    flops = 2.0 * tokens * k * n
    rates = gemms_24 / SPARSE_FLOPS_PER_US + (3 - gemms_24) / DENSE_FLOPS_PER_US
    return flops * rates + (pruned + packed) / BYTES_PER_US


def _distance(row: Measured, layer: Layer) -> float:
    pairs = [(row.width, layer.width), (row.hidden, layer.hidden)]
    return sum(math.log(a / max(1, b)) ** 2 for a, b in pairs) + 0.1 * (row.gated != layer.gated)
