"""Warns of layers of recipe="activation" that drop much of their hidden state, without waiting for the device.

Every hundredth forward the counts of each layer are summed where they are, and the sums copied to the host, who reads
them at a later forward, when they have arrived.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.weights.hidden_state import HiddenState

log = logging.getLogger("s24compile")

LIMIT = 0.05
"""Share of a hidden state's sum."""
FIRST_LOOK, LOOK_EVERY = 10, 100
"""Forwards of a layer."""
_DROPPED, _WHOLE = 3, 4
"""Their columns in a layer's counts."""


class DroppedWatch:
    """What has been asked of the devices, and not been answered yet."""

    def __init__(self) -> None:
        self._asked: list[_Question] = []

    def note(self, states: Sequence[HiddenState]) -> None:
        """Takes the answers that have arrived, and asks about those of `states`, just run, whose turn it is."""
        if self._asked:
            arrived = [question for question in self._asked if question.is_answered()]
            self._asked = [question for question in self._asked if question not in arrived]
            for question in arrived:
                _warn(question.answer())
        due = [state for state in states if state.forwards % LOOK_EVERY == FIRST_LOOK and not state.warned]
        by_device: dict[torch.device, list[tuple[HiddenState, Tensor]]] = {}
        for state in due:
            if state.counts is not None and not _capturing(state.counts):
                by_device.setdefault(state.counts.device, []).append((state, state.counts))
        for pairs in by_device.values():
            question = _Question(pairs)
            if question.event is None:  # on a CPU there is nothing to wait for
                _warn(question.answer())
            else:
                self._asked.append(question)


class _Question:
    """The shares of some layers, on their way to the host."""

    def __init__(self, pairs: Sequence[tuple[HiddenState, Tensor]]) -> None:
        self.states = [weakref.ref(state) for state, _ in pairs]
        found = torch.stack([_totals(counts) for _, counts in pairs])
        self.event: torch.cuda.Event | None = None
        self.totals = found
        if found.is_cuda:
            self.totals = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self.totals.copy_(found, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def is_answered(self) -> bool:
        """Whether the numbers are there. Waits for nothing."""
        return self.event is None or self.event.query()

    def answer(self) -> list[tuple[HiddenState, float]]:
        """(layer, share of its hidden state's sum that was dropped), of the layers that are there still."""
        alive = [
            (ref(), dropped, whole) for ref, (dropped, whole) in zip(self.states, self.totals.tolist(), strict=True)
        ]
        return [(state, dropped / whole) for state, dropped, whole in alive if state is not None and whole > 0]


WATCH = DroppedWatch()


def _totals(counts: Tensor) -> Tensor:
    return counts[..., _DROPPED : _WHOLE + 1].sum((0, 1), dtype=torch.float64)


def _capturing(counts: Tensor) -> bool:
    return counts.is_cuda and torch.cuda.is_current_stream_capturing()


def _warn(shares: Sequence[tuple[HiddenState, float]]) -> None:
    """Warns once a layer."""
    much = [(state, share) for state, share in shares if share > LIMIT and not state.warned]
    for state, _ in much:
        state.warned = True
    if much:
        log.warning(
            "recipe='activation' drops more than %.0f%% of the hidden state of %d layer(s) (by their last projections: "
            "%s): more than two of four neighbours are not zero too often, and the layer is not nearly the dense one. "
            "A longer dense start (dense_until) lets zeros form first; exclude=[...] leaves such layers dense; "
            "s24compile.activation_stats(model) has all shares.",
            100 * LIMIT,
            len(much),
            ", ".join(f"{state.schedule.name} {share:.1%}" for state, share in much[:8])
            + (", ..." if len(much) > 8 else ""),
        )
