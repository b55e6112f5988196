"""What layers, GEMMs and passes over memory were measured to cost, by GPU: what `lowering.cost` decides by. A leaf.

Legend: T tokens, D model width, F hidden width, K input features of a linear.
"""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Measured:
    """One row: GPU microseconds of a step, forward and backward with packing, dense (Inductor) and 2:4, in bf16."""

    width: int
    hidden: int
    gated: bool
    tokens: int
    dense_us: float
    sparse_us: float
    state: bool = False
    """Whether the hidden state was 2:4, of a layer with squared ReLU, and no weight."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """The measurements of one GPU. Rates are dense-equivalent operations, or bytes, in a microsecond."""

    gpu: str
    """Its name in a sentence: "measured on {gpu}"."""
    layers: tuple[Measured, ...]
    """Without a row of 2:4 hidden states those are estimated, by their roofline and what 2:4 weights took of theirs."""
    host_bound_us: float
    """2:4 layers shorter than this left the GPU waiting for its host."""
    dense_flops_per_us: float
    sparse_flops_per_us: float
    """Of GEMMs at 16384 tokens, cuBLAS and ours."""
    bytes_per_us: float
    """Of device memory, measured with a copy."""
    launch_us: float
    """What a kernel takes at least, from one to the next."""
    dw_dense_flops_per_us: float
    dw_sparse_flops_per_us: float
    """Of weight gradients alone."""
    mvue_bytes_per_us: float
    """Of `mvue_pack`."""

    @property
    def mvue_from(self) -> int:
        """Input features K from which dW = MVUE(dZ^T) X takes less time than dZ^T X.

        Pruning moves 3.125 bytes per element of dZ [T, N], and its 2:4 GEMM saves the difference of the two rates for
        2 T N K operations.
        """
        saved_us = 2 / self.dw_dense_flops_per_us - 2 / self.dw_sparse_flops_per_us
        return math.ceil(3.125 / self.mvue_bytes_per_us / saved_us)


H100 = Costs(
    gpu="an H100",
    # H100 80GB HBM3, torch 2.11, bf16 autocast, fp32 master weights; benchmarks/ffn.py, 2026-11-24 and 26.
    layers=(
        Measured(768, 3072, False, 16384, 929, 720),
        Measured(1024, 4096, False, 16384, 1443, 1020),
        Measured(1280, 5120, False, 16384, 2253, 1588),
        Measured(1600, 6400, False, 16384, 3279, 2504),
        Measured(1024, 2816, True, 16384, 1558, 1217),
        Measured(4096, 11008, True, 16384, 20962, 14081),
        Measured(4096, 14336, True, 16384, 26948, 18480),
    ),
    # A block of GPT-2 124M took its host 2.3 ms to launch (1.6 dense), which is what it takes the GPU at 13 000 tokens
    # (benchmarks/nanogpt.py, 2026-11-24).
    host_bound_us=580,
    # Geometric means of benchmarks/results/gemm.json; the weight gradients are those of GPT-2's layers.
    dense_flops_per_us=0.706e9,
    sparse_flops_per_us=1.058e9,
    bytes_per_us=3.0e6,
    launch_us=3.0,
    dw_dense_flops_per_us=0.735e9,
    dw_sparse_flops_per_us=1.008e9,
    # 16384 x 3072 (benchmarks/results/memory_kernels.json).
    mvue_bytes_per_us=2.5e6,
)
