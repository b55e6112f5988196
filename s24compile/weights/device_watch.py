"""Finds writes that nothing shows in weights on a GPU, without waiting for it.

The host may not ask the device whether elements have changed: it would stand still until the device has done all that
was queued. So samples are compared there, by one launch for all weights, when a model is run again although nothing
shows that its weights were written; the answer is copied to the host, who finds it one or two forwards later. What was
computed meanwhile used the weights of before.

A weight so found is packed before each forward from then on: whoever writes one so will do it again.

Weights that train are packed after each step, and need no sample until they are asked for twice between two steps.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from s24compile.kernels.watch.sample import sample_length, sampled
from s24compile.weights.contents import Content
from s24compile.weights.sample import HostSample
from s24compile.weights.sparse_weight import SparseWeight


class DeviceWatch:
    """The weights of one device that have samples."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.number = 0
        """How many comparisons have been launched."""
        self._taken: weakref.WeakKeyDictionary[SparseWeight, tuple[int, Content]] = weakref.WeakKeyDictionary()
        """(number when its sample was taken, its content then)."""
        self._round: _Round | None = None

    @property
    def is_capturing(self) -> bool:
        """Whether launches go into a CUDA graph."""
        return self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()

    def take(self, weights: Iterable[SparseWeight]) -> None:
        """Takes the samples of these weights, as they have just been packed. Call outside of inference mode."""
        parameters: list[Tensor] = []
        samples: list[Tensor] = []
        for weight in weights:
            parameter = weight.stored()
            length = None if parameter is None else sample_length(parameter)
            if parameter is None or length is None:
                continue
            kind = parameter.dtype, parameter.device
            held = weight.contents.sample
            if not isinstance(held, Tensor) or (held.dtype, held.device) != kind or held.numel() != length:
                held = weight.contents.sample = torch.empty(length, dtype=kind[0], device=kind[1])
            if weight not in self._taken:
                self._round = None
            self._taken[weight] = self.number, weight.present_content
            parameters.append(parameter)
            samples.append(held)
        if parameters:
            torch.ops.s24.copy_samples_.default(parameters, samples)

    def drop(self, weights: Iterable[SparseWeight]) -> None:
        """Forgets samples, which are of earlier contents."""
        for weight in weights:
            weight.contents.sample = None
            if self._taken.pop(weight, None) is not None:
                self._round = None

    def look(self) -> None:
        """Launches a comparison of all samples. Call outside of inference mode."""
        self.number += 1
        if self._round is None or not self._round.launch(self.number):
            self._round = _Round(list(self._taken), self.device)
            self._round.launch(self.number)

    def has_news(self) -> bool:
        """Whether the device has found something since `found` was asked."""
        return self._round is not None and self._round.has_news()

    def found(self) -> list[SparseWeight]:
        """The weights that comparisons have found written since their sample was taken, which nothing else shows.

        What the device has not answered yet, later calls return.
        """
        answers = self._round.news() if self._round is not None else []
        return [weight for weight, number in answers if self._is_unseen(weight, number)]

    def _is_unseen(self, weight: SparseWeight, number: int) -> bool:
        taken = self._taken.get(weight)
        # What shows, an optimizer's step above all, will pack the weight anyway.
        return (
            taken is not None
            and weight.parameter() is not None
            and number > taken[0]
            and weight.present_content == taken[1]
        )


class _Round:
    """The weights of one comparison, and where its answer arrives. Another set of weights gets buffers of its own, so
    that no late answer is taken for another weight's."""

    def __init__(self, weights: list[SparseWeight], device: torch.device) -> None:
        self._weights = [weakref.ref(weight) for weight in weights]
        self._found = torch.zeros(len(weights), dtype=torch.int32, device=device)
        self._answer = torch.zeros(len(weights), dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
        # Read by address, at each forward: 0.05 us.
        self._bytes = (ctypes.c_char * self._answer.nbytes).from_address(self._answer.data_ptr())
        self._read = self._bytes.raw

    def launch(self, number: int) -> bool:
        """Whether all weights are there still; nothing is launched otherwise."""
        alive = [weight for ref in self._weights if (weight := ref()) is not None]
        parameters = [parameter for weight in alive if (parameter := weight.stored()) is not None]
        samples = [weight.contents.sample for weight in alive]
        if len(parameters) != len(self._weights):
            return False
        if parameters:
            torch.ops.s24.compare_samples_.default(parameters, samples, self._found, number)
            self._answer.copy_(self._found, non_blocking=True)
        return True

    def has_news(self) -> bool:
        """Whether anything has arrived since `news` was asked."""
        return bool(self._bytes.raw != self._read)

    def news(self) -> list[tuple[SparseWeight, int]]:
        """(weight, number of the comparison that found it last), if anything has arrived since this was asked."""
        if not self.has_news():
            return []
        self._read = self._bytes.raw
        numbers = self._answer.tolist()
        return [(w, number) for ref, number in zip(self._weights, numbers, strict=True) if (w := ref()) is not None]


WATCHED = ("cuda",)
"""Types of device whose memory the host does not read."""
_WATCHES: dict[torch.device, DeviceWatch] = {}


def watch_of(device: torch.device) -> DeviceWatch | None:
    """The watch of a device, made at the first request; None for the host, which looks for itself."""
    if device.type not in WATCHED:
        return None
    watch = _WATCHES.get(device)
    if watch is None:
        watch = _WATCHES[device] = DeviceWatch(device)
    return watch


def take_samples(weights: Iterable[SparseWeight], training: bool) -> None:
    """Takes samples of weights that have just been packed: of those on a GPU only where one will be compared.

    Args:
        training: whether they were packed for a forward with gradients.
    """
    wanted: dict[DeviceWatch, list[SparseWeight]] = {}
    outdated: dict[DeviceWatch, list[SparseWeight]] = {}
    for weight in weights:
        parameter = weight.stored()
        if parameter is None:
            continue
        watch = watch_of(parameter.device)
        if watch is None:
            elements = sampled(parameter) if parameter.device.type == "cpu" else None
            weight.contents.sample = None if elements is None else HostSample(parameter, elements)
        elif weight.contents.unseen or (training and weight.takes_gradient and not weight.contents.asked_again):
            outdated.setdefault(watch, []).append(weight)
        else:
            wanted.setdefault(watch, []).append(weight)
    for watch, found in wanted.items():
        # A CUDA graph would take them at each replay, and nobody compare them.
        (watch.drop if watch.is_capturing else watch.take)(found)
    for watch, found in outdated.items():
        watch.drop(found)
