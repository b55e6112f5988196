"""Samples of weights, taken and compared. What a sample is, `watch/sample.py` says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.watch.sample import BITS, sampled


def copy_samples_(weights: Sequence[Tensor], samples: Sequence[Tensor]) -> None:
    """samples[i] becomes `sampled(weights[i])`: of the same dtype and length, contiguous."""
    for weight, sample in zip(weights, samples, strict=True):
        found = sampled(weight)
        assert found is not None, "only weights that fill one piece of memory have samples"
        sample.copy_(found)


def compare_samples_(weights: Sequence[Tensor], samples: Sequence[Tensor], found: Tensor, number: int) -> None:
    """found[i] becomes `number` where `sampled(weights[i])` is not samples[i], bit by bit. No host sync.

    Args:
        found: int32 [len(weights)], on the weights' device.
    """
    for place, (weight, sample) in enumerate(zip(weights, samples, strict=True)):
        now, bits = sampled(weight), BITS[sample.element_size()]
        assert now is not None, "only weights that fill one piece of memory have samples"
        differs = (now.view(bits) != sample.view(bits)).any()
        found[place] = torch.where(differs, number, found[place])
