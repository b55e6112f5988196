"""What the steps of a layer in eight bits have seen: the largest number of its inputs and of its output's gradients.

A compiled step has them on the GPU anyway: it scales by them. They leave it as the gradients of two inputs, of one
element each, that have no part in what it computes: a forward's result would be overwritten by a second forward, and
of a backward gradients are the only results. Autograd hands them over without a kernel or a host sync.
"""

from __future__ import annotations

import functools
import weakref

import torch
from torch import Tensor

from s24compile.torch_internals.graphs import FakeTensor

GRAPH_MODES = ("reduce-overhead", "max-autotune")
"""Inductor's modes in which the next replay of a CUDA graph overwrites what this one has returned."""


class Observed:
    """Two probes, and what the last backward found for them."""

    def __init__(self, device: torch.device, mode: str | None) -> None:
        with torch.inference_mode(False):
            self.probes = tuple(torch.zeros(1, device=device, requires_grad=True) for _ in range(2))
        """Inputs of the compiled graph, fp32 [1]: whose gradients are the amax of x, and that of dZ."""
        self.found: list[Tensor | None] = [None, None]
        """amax of x, amax of dZ: fp32 [1] on the device; None before the first backward."""
        for place, probe in enumerate(self.probes):
            if not isinstance(probe, FakeTensor):
                note = functools.partial(_note, weakref.ref(self), place, mode in GRAPH_MODES)
                probe.register_post_accumulate_grad_hook(note)


def _note(ref: weakref.ref[Observed], place: int, copy: bool, probe: Tensor) -> None:
    observed, amax = ref(), probe.grad
    probe.grad = None
    if observed is not None and amax is not None:
        observed.found[place] = amax.detach().clone() if copy else amax.detach()
