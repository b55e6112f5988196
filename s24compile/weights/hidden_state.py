"""What is known of a layer whose hidden state is 2:4: when it trains so, and what its last forward held and dropped.

Legend: T tokens, F hidden width.

No weight of such a layer is pruned or packed. A schedule it has all the same (dense at the start, phases), and that
goes by the optimizer steps of a parameter, as everywhere: by those of the last projection's weight, under which the
state is found, saved and restored.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.torch_internals.graphs import FakeTensor
from s24compile.weights.following import note_owners
from s24compile.weights.operand_request import LayerRequest
from s24compile.weights.parameter_map import ParameterMap
from s24compile.weights.registry import is_dense, sparse_weight
from s24compile.weights.schedule import CLOCK
from s24compile.weights.sharding import master_of
from s24compile.weights.sparse_weight import SparseWeight


class HiddenState:
    """The state of one layer, over the schedule of its last projection's weight."""

    def __init__(self, schedule: SparseWeight, partners: Sequence[Parameter]) -> None:
        self.schedule = schedule
        self.partners = tuple(weakref.ref(partner) for partner in partners)
        """The other parameters that the layer is known by: the weight of its first projection."""
        self.counts: Tensor | None = None
        """Of the last forward, [T/64, F/64, 5], see `kernels/activation/reference.py`; None before it."""
        self.forwards = 0
        """How many of them were 2:4."""
        self.warned = False
        """Whether it has been said that it drops much."""

    @property
    def dense(self) -> bool:
        """Whether the layer trains dense at the next forward."""
        return self.schedule.has_phases and self.schedule.phase == "dense"

    def note(self, counts: Tensor) -> None:
        """Keeps what a forward counted, where it is: nothing is read from the device."""
        self.counts = counts
        self.forwards += 1
        self.schedule.packed_at = CLOCK.tick


@dataclasses.dataclass(frozen=True)
class FakeHiddenState:
    """Stands for a state while a compiler calls the graph with FakeTensors; nothing is remembered."""

    dense: bool

    def note(self, counts: Tensor) -> None:
        """The counts are fakes, too."""


STATES: ParameterMap[HiddenState] = ParameterMap()
"""By the last projection's weight as it arrives in a call: what FSDP2 has gathered, where its shards hold the
schedule."""


def hidden_state(parameters: Sequence[Tensor], request: LayerRequest, config: Config) -> HiddenState | FakeHiddenState:
    """The state of the layer with these parameters, made at the first request. Cheap when it exists.

    Raises:
        ConflictError: a parameter has a state already, with options that mean another training.
        CheckpointError: state was loaded for this model that does not fit, now that the options are known.
    """
    found = STATES.get(parameters[0])
    if found is not None:
        if found.schedule.config is not config:
            sparse_weight(cast(Parameter, parameters[0]), config, request.names[0], request.weight_layout)
        return found
    if isinstance(parameters[0], FakeTensor):
        return FakeHiddenState(is_dense(parameters) or config.dense_from == 0 or config.sparse_from > 0)
    owned = [cast(Parameter, master_of(parameter)) for parameter in parameters]
    first = sparse_weight(cast(Parameter, parameters[0]), config, request.names[0], request.weight_layout)
    made = HiddenState(first, owned[1:])
    STATES.set(parameters[0], made)
    STATES.set(owned[0], made)
    note_owners(owned[:1])  # so that the schedule follows when another Parameter stands there
    return made


def note_counts(states: Sequence[HiddenState | FakeHiddenState], counts: Sequence[Tensor], copy: bool) -> None:
    """Hands each state what a forward counted.

    Args:
        copy: the counts lie in memory that the next replay of a CUDA graph overwrites.
    """
    if copy and counts and counts[0].is_cuda:
        kept = [torch.empty_like(c) for c in counts]
        torch._foreach_copy_(kept, list(counts))
        counts = kept
    for state, counted in zip(states, counts, strict=True):
        state.note(counted)
