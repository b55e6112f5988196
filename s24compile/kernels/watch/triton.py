"""Samples of many weights in one launch for each element size among them. Legend: see watch/reference.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import triton.language as tl
from torch import Tensor

from s24compile.kernels.providers import Provider
from s24compile.kernels.triton.batch import remembered, table
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.tiles import SAMPLES
from s24compile.kernels.watch.sample import memory_shape, sample_stride
from s24compile.kernels.watch.triton_kernels import samples_many

_BITS = {2: tl.int16, 4: tl.int32}


def _supports_copying(weights: Sequence[Tensor], samples: Sequence[Tensor]) -> str | None:
    # Not whether each is in one piece of memory, which all weights are that have a sample: this runs at each forward.
    wrong = {weight.dtype for weight in weights if weight.element_size() not in _BITS}
    return f"takes 16 and 32 bit weights only, not {wrong.pop()}" if wrong else None


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


_Launches = tuple[tuple[int, Tensor, Tensor, int], ...]
"""(element size, entries, owners, programs) of each launch: addresses only."""
_KNOWN: dict[tuple[object, ...], _Launches] = {}
_KNOWN_KEPT = 16


def _launch(weights: Sequence[Tensor], samples: Sequence[Tensor], found: Tensor, number: int, *, take: bool) -> None:
    addresses = tuple([x.data_ptr() for tensors in (weights, samples) for x in tensors])
    key = addresses, tuple([(w.shape, w.stride(0), w.dtype) for w in weights])
    device = weights[0].device if weights else found.device
    make = functools.partial(_work_out, weights, samples)
    for size, entries, owners, programs in remembered(_KNOWN, _KNOWN_KEPT, key, device, make):
        launch(
            samples_many, programs, SAMPLES, device, entries, owners, found, number,
            BITS=_BITS[size], TAKE=take, BLOCK=SAMPLES.columns,
        )  # fmt: skip


def _work_out(weights: Sequence[Tensor], samples: Sequence[Tensor]) -> _Launches:
    kinds: dict[int, list[tuple[int, ...]]] = {}
    for place, (weight, sample) in enumerate(zip(weights, samples, strict=True)):
        shape = memory_shape(weight)
        assert shape is not None, "only weights that fill one piece of memory have samples"
        words = weight.data_ptr(), sample.data_ptr(), sample_stride(*shape), sample.numel(), place
        kinds.setdefault(weight.element_size(), []).append(words)
    return tuple(
        (size, *table(weights[0].device, tuple(entries), tuple(-(-words[3] // SAMPLES.columns) for words in entries)))
        for size, entries in kinds.items()
    )


PROVIDERS = {
    "copy_samples_": Provider("triton", copy_samples_, _supports_copying),
    "compare_samples_": Provider("triton", compare_samples_, _supports_comparing),
}
