"""Which phases a run will go through: the sets of weights that train dense at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from s24compile.config import Config
from s24compile.recipe import recipe_of
from s24compile.weights.schedule import phase_at


class Scheduled(Protocol):
    """Something that turns dense or 2:4 by the options that it was asked for with."""

    @property
    def config(self) -> Config: ...


S = TypeVar("S", bound=Scheduled)


def planned_phases(slots: Sequence[S], present: frozenset[S]) -> list[frozenset[S]]:
    """What will be dense after `present` was, in order and each once, by the schedules alone.

    By hand (`set_phase`) or by optimizers that step at different rates there may be others.
    """
    edges = {edge for slot in slots for edge in (slot.config.sparse_from, slot.config.dense_from) if edge is not None}
    sequence = [frozenset(slot for slot in slots if _is_dense(slot.config, step)) for step in sorted({0, *edges})]
    driven = frozenset(slot for slot in slots if recipe_of(slot.config.recipe).optimizer_drives_phase)
    if driven:  # they start dense, and nobody knows for how long
        sequence = [phase | driven for phase in sequence] + sequence
    later = sequence[sequence.index(present) + 1 :] if present in sequence else sequence
    return [phase for phase in dict.fromkeys(later) if phase != present]


def _is_dense(config: Config, step: int) -> bool:
    return phase_at(step, config.sparse_from, config.dense_from, None, 0) == "dense"
