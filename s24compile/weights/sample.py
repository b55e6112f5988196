"""The sample of a weight in the host's memory, and what two samples say of each other.

What a sample is, `kernels/watch/sample.py` says: no write of whole rows or columns goes unseen, one of fewer
elements may.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from s24compile.kernels.watch.sample import BITS

_WINDOW_BYTES = 64


class HostSample:
    """Compared at once, in about a microsecond.

    What it reads is found by address, so that it holds no storage alive: call `differs` and `differs_nearby` only while
    the weight is known to be where it was.
    """

    __slots__ = ("_memory", "_nearby", "_window", "saved")

    def __init__(self, parameter: Tensor, elements: Tensor) -> None:
        """elements: what `sampled(parameter)` returned."""
        bits, nbytes = BITS[parameter.element_size()], parameter.numel() * parameter.element_size()
        address = parameter.data_ptr()
        self.saved = elements.clone()
        """[about max(R, C)], of the weight's dtype."""
        memory = torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=bits)
        self._memory = memory[:: elements.stride(0)], self.saved.view(bits)
        size = min(_WINDOW_BYTES, nbytes)
        # In the middle: what is padded or frozen in part is so at the ends.
        self._window = (ctypes.c_char * size).from_address(address + (nbytes - size) // 2)
        self._nearby = self._window.raw

    def differs(self) -> bool:
        """Whether an element that is looked at has changed, by its bits."""
        return self.differs_nearby() or not torch.equal(*self._memory)

    def differs_nearby(self) -> bool:
        """Whether one of a few neighbouring elements has changed: 0.05 us, and enough for writes of whole weights."""
        return bool(self._window.raw != self._nearby)


def same_values(before: Tensor, now: Tensor) -> bool:
    """Whether two samples are of the same values, but for a cast to a narrower dtype. May wait for the device."""
    if before.shape != now.shape:
        return False
    before = before.to(now.device)
    return torch.equal(before.to(now.dtype), now) or torch.equal(now.to(before.dtype), before)
