"""Sample inputs of every op, one function per op: what tests, opcheck and provider comparisons are run on.

Shapes are small and odd on purpose: more than one metadata atom, row ranges that end within an atom, strided and
offset inputs, empty ones. Legend: T tokens, N output features, K input features, F hidden width.
"""

from __future__ import annotations

import torch

from s24compile.kernels.samples import activation, fp8, hidden, packing, products, scaled, watching
from s24compile.kernels.samples.maker import Maker, Sample, Samples

SAMPLES: Samples = (
    packing.SAMPLES
    | products.SAMPLES
    | hidden.SAMPLES
    | activation.SAMPLES
    | watching.SAMPLES
    | fp8.SAMPLES
    | scaled.SAMPLES
)


def samples(op: str, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> list[Sample]:
    """The sample calls of one op: equal for equal arguments, fresh tensors each time (some ops write into them)."""
    generator = torch.Generator().manual_seed(seed)
    return list(SAMPLES[op](Maker(torch.device(device), dtype, generator)))
