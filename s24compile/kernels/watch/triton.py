"""Samples of many weights in one launch for each element size among them. Legend: see watch/reference.py."""

from __future__ import annotations

from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

from s24compile.kernels.providers import Provider
from s24compile.kernels.triton.batch import table
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.tiles import SAMPLES
from s24compile.kernels.watch.sample import memory_shape, sample_stride
from s24compile.kernels.watch.triton_kernels import samples_many

_BITS = {2: tl.int16, 4: tl.int32}


def _supports_copying(weights: Sequence[Tensor], samples: Sequence[Tensor]) -> str | None:
    wrong = next((w for w in weights if w.element_size() not in _BITS or memory_shape(w) is None), None)
    if wrong is None:
        return None
    return f"takes 16 and 32 bit weights in one piece of memory only, not {wrong.dtype} of strides {wrong.stride()}"


def _supports_comparing(weights: Sequence[Tensor], samples: Sequence[Tensor], found: Tensor, number: int) -> str | None:
    """As `copy_samples_`."""
    return _supports_copying(weights, samples)


def copy_samples_(weights: Sequence[Tensor], samples: Sequence[Tensor]) -> None:
    """See watch/reference.py."""
    if weights:  # what is compared in place of `found` is not read
        _launch(weights, samples, samples[0], 0, take=True)


def compare_samples_(weights: Sequence[Tensor], samples: Sequence[Tensor], found: Tensor, number: int) -> None:
    """See watch/reference.py."""
    _launch(weights, samples, found, number, take=False)


def _launch(weights: Sequence[Tensor], samples: Sequence[Tensor], found: Tensor, number: int, *, take: bool) -> None:
    kinds: dict[int, list[tuple[int, ...]]] = {}
    for place, (weight, sample) in enumerate(zip(weights, samples, strict=True)):
        shape = memory_shape(weight)
        assert shape is not None, "_supports has looked"
        words = weight.data_ptr(), sample.data_ptr(), sample_stride(*shape), sample.numel(), place
        kinds.setdefault(weight.element_size(), []).append(words)
    for size, entries in kinds.items():
        programs = tuple(-(-words[3] // SAMPLES.columns) for words in entries)
        device = weights[0].device
        address, owners, total = table(device, tuple(entries), programs)
        launch(
            samples_many, total, SAMPLES, device, address, owners, found, number,
            BITS=_BITS[size], TAKE=take, BLOCK=SAMPLES.columns,
        )  # fmt: skip


PROVIDERS = {
    "copy_samples_": Provider("triton", copy_samples_, _supports_copying),
    "compare_samples_": Provider("triton", compare_samples_, _supports_comparing),
}
