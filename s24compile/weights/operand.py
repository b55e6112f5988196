"""Packed weights: static buffers that a compiled graph reads, and the question whether they are still true.

Legend: N output features (rows of all weights stacked), K input features.

One operand packs one Parameter, or gate and up together ([2F, D], one GEMM), at one dtype and format. A model may ask
for several operands of one weight (bf16 under autocast for training, fp32 for evaluation); the mask is shared through
`SparseWeight`. Buffers are allocated once and re-packed in place, so that CUDA graphs may hold their addresses, and
by an op that moves version counters, so that a backward through weights that were stepped meanwhile raises. Under
`Config.freshness="always"` each pack has buffers of its own, which live until its backward.

Fresh means: since the last pack no optimizer that holds the weight stepped, nothing shows that it was written, and the
elements that are compared have not changed (`weights/contents.py`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.kernels.format import FORMATS
from s24compile.torch_internals.tensors import storage_expired, write_count
from s24compile.weights.observed import Observed
from s24compile.weights.operand_request import OperandRequest
from s24compile.weights.schedule import CLOCK
from s24compile.weights.sparse_weight import SparseWeight

Buffers = tuple[Tensor, ...]
State = tuple[Any, ...]
"""(content, revision, whether another mask is due although neither has changed, ...) of one weight."""


class Operand:
    """The packed form of one or two weights at one dtype and format."""

    def __init__(self, weights: tuple[SparseWeight, ...], request: OperandRequest, config: Config) -> None:
        self.weights = weights
        self.request = request
        self.config = config
        self.forward: Buffers = ()
        """(values, metadata) of W~ [N, K], and in eight bits its descale, which is W~^T's too; () before the first
        pack."""
        self.transposed: Buffers = ()
        """(values, metadata) of W~^T [K, N]; () until a backward asked for it."""
        self.observed: Observed | None = None
        """In eight bits, what its steps have seen."""
        self._inputs: Buffers = ()
        self._both: Buffers = ()
        self.times_packed = 0
        """How often it has been packed."""
        self._packed_at: list[State] | None = None
        self._source = _kind(self.parameters())

    @property
    def gathered(self) -> bool:
        """Whether FSDP2 gathers its weights for each use, and frees them afterwards: `weights/sharded_operand.py`."""
        return False

    @property
    def dense(self) -> bool:
        """Whether the weights train dense at the next forward (then nothing needs packing)."""
        # Once a forward and weight: most of them have no phases.
        return "dense" in [weight.phase for weight in self.weights if weight.has_phases]

    def packs(self, parameters: tuple[Tensor, ...]) -> bool:
        """Whether this operand is of exactly these Parameter objects."""
        if len(parameters) == 1:
            return self.weights[0].parameter() is parameters[0]
        return all(weight.parameter() is p for weight, p in zip(self.weights, parameters, strict=True))

    @property
    def obsolete(self) -> bool:
        """Whether a Parameter died, or became of another dtype or device, since the last pack: nobody asks again."""
        parameters = self.parameters()
        return any(p is None for p in parameters) or _kind(parameters) != self._source

    def stale(self, needs_transpose: bool) -> bool:
        """Whether the buffers asked for have to be packed before they are read."""
        return self.shows_change(needs_transpose) or self._written()

    def shows_change(self, needs_transpose: bool) -> bool:
        """Whether they have to be, by what shows without a look at numbers."""
        changed = self._packed_at != self._state() or self.config.freshness == "always"
        return changed or (needs_transpose and not self.transposed)

    def buffers(self, needs_transpose: bool) -> Buffers:
        """The buffers as they are, and in eight bits the probes behind the descale."""
        return self._both if needs_transpose else self._inputs

    def forget(self) -> None:
        """Makes it stale, whatever shows."""
        self._packed_at = None
        CLOCK.moves += 1

    def parameters(self) -> tuple[Tensor, ...]:
        """The tensors packed, which are the Parameters; the caller of a forward holds them alive."""
        return tuple(cast(Parameter, weight.parameter()) for weight in self.weights)

    @property
    def _packs_apart(self) -> bool:
        """Whether each pack has buffers of its own: under "always" a second forward before the first one's backward
        must not write into what that saved."""
        return self.config.freshness == "always"

    def _state(self) -> list[State]:
        # Once a forward and weight, in the hot path: `SparseWeight.content` written out.
        state: list[State] = []
        for weight in self.weights:
            parameter: Any = weight.parameter()
            try:
                version = write_count(parameter)
            except RuntimeError:  # an inference tensor
                version = -1
            contents = weight.contents
            if storage_expired(contents.storage.cdata):
                state.append((weight.content(parameter), weight.revision, False))
                continue
            frozen = not parameter.requires_grad
            tick = weight.tick if weight.held or frozen else CLOCK.tick
            content = version, parameter.data_ptr(), contents.storage_number, contents.unseen, tick
            # The steps that end the interval of a frozen weight do not move its content; nor does it move from an
            # evaluation, which may have had a mask of its own, to a forward that trains.
            due = weight.search_overdue(content) if frozen else weight.awaits_training and torch.is_grad_enabled()
            state.append((content, weight.revision, due))
        return state

    def was_written_unseen(self, needs_transpose: bool) -> bool:
        """Whether one of its weights was, ever, and all that shows is as it was packed."""
        if not any(weight.contents.unseen for weight in self.weights) or (needs_transpose and not self.transposed):
            return False
        before = self._packed_at or []
        return [(*c[:3], c[4], *rest) for c, *rest in before] == [(*c[:3], c[4], *rest) for c, *rest in self._state()]

    def _written(self) -> bool:
        """Whether a weight, which by all that shows has not changed, has other numbers than it was packed with."""
        written = [weight for weight in self.weights if weight.find_unseen_write()]  # of both, not the first
        return bool(written)

    def note_pack(self) -> None:
        """Notes that the buffers now are those of the weights."""
        CLOCK.moves += 1
        self.times_packed += 1
        self._packed_at = self._state()
        self._source = _kind(self.parameters())  # a bf16 operand of an fp32 weight serves on once that is bf16

    def allocate(self, device: torch.device, needs_transpose: bool) -> None:
        """Makes the buffers that it lacks."""
        rows, cols, dtype = sum(self.request.rows), self.request.cols, self.request.dtype
        form = FORMATS[self.request.format]
        if self._packs_apart or not self.forward or self.forward[0].device != device:
            scale = (torch.ones(1, device=device),) if self.request.eight_bit else ()
            self.forward, self.transposed = (*form.empty(rows, cols, dtype, device), *scale), ()
        if needs_transpose and not self.transposed:
            self.transposed = FORMATS[form.transposed].empty(cols, rows, dtype, device)
        if self.request.eight_bit and (self.observed is None or self.observed.probes[0].device != device):
            self.observed = Observed(device, self.config.mode)
        self._inputs = self.forward if self.observed is None else (*self.forward, *self.observed.probes)
        self._both = (*self._inputs, *self.transposed)


def _kind(parameters: tuple[Tensor, ...]) -> list[tuple[torch.dtype, torch.device]]:
    return [(p.dtype, p.device) for p in parameters]
