"""Packed weights whose masters other processes hold parts of: under FSDP2, tensor parallel, or both.

What FSDP2 gathers it frees again, after each forward and each backward, and the packed form with it. So a forward packs
what it needs, and so does the backward where the forward's has been freed meanwhile (`weights/regathering.py`): the
same numbers with the same masks into the same tensors, whose version counters then stay as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.torch_internals import fsdp
from s24compile.weights.contents import version_of
from s24compile.weights.operand import Operand, State
from s24compile.weights.operand_request import OperandRequest
from s24compile.weights.sharding import local
from s24compile.weights.sparse_weight import SparseWeight

Stamp = tuple[tuple[object, ...], ...]
"""What a packed form was made of: equal means of the same numbers, and with the same masks."""


class ShardedOperand(Operand):
    """The packed form of weights that arrive at a graph as other tensors than the optimizer holds."""

    def __init__(
        self, weights: tuple[SparseWeight, ...], request: OperandRequest, config: Config, given: tuple[Tensor, ...]
    ) -> None:
        self._given = tuple(weakref.ref(parameter) for parameter in given)
        self._records = tuple(weakref.ref(record) for p in given if (record := fsdp.record_of(p)) is not None)
        """FSDP2's, of the weights that it gathers; () under tensor parallel alone. A record holds what is given."""
        self._sizes: list[tuple[Tensor, int]] = []
        """The buffers that FSDP2 frees, and how many bytes they have while it does not."""
        self._keep: Callable[[], object] | None = None
        super().__init__(weights, request, config)

    @property
    def gathered(self) -> bool:
        """Whether FSDP2 gathers a weight for each use, and frees it afterwards."""
        return bool(self._records)

    def packs(self, parameters: tuple[Tensor, ...]) -> bool:
        """See `Operand.packs`."""
        return all(given() is p for given, p in zip(self._given, parameters, strict=True))

    def parameters(self) -> tuple[Tensor, ...]:
        """The plain tensors packed."""
        return tuple(local(cast(Tensor, given())) for given in self._given)

    @property
    def obsolete(self) -> bool:
        """See `Operand.obsolete`."""
        return any(given() is None for given in self._given) or super().obsolete

    @property
    def freed(self) -> bool:
        """Whether FSDP2 has freed the buffers together with the gathered weight."""
        return bool(self.forward) and self.forward[0].untyped_storage().size() == 0

    @property
    def lacks_weight(self) -> bool:
        """Whether FSDP2 has freed the weight and not gathered it again."""
        return any(p.untyped_storage().size() == 0 for p in self.parameters() if p.numel())

    @property
    def only_freed(self) -> bool:
        """Whether packing it would write what it held before it was freed."""
        return self.freed and self._packed_at == self._state()

    def shows_change(self, needs_transpose: bool) -> bool:
        """See `Operand.shows_change`."""
        return self.freed or super().shows_change(needs_transpose)

    def stamp(self) -> Stamp:
        """What the packed form is made of now. Steps of optimizers that are not seen to hold a weight don't count."""
        parameters = [weight.parameter() for weight in self.weights]
        contents = [w.content(p) for w, p in zip(self.weights, parameters, strict=True) if p is not None]
        return tuple((*c[:4], w.tick, w.revision) for w, c in zip(self.weights, contents, strict=True))

    def allocate(self, device: torch.device, needs_transpose: bool) -> None:
        """See `Operand.allocate`. FSDP2 is told to free what is made here."""
        for buffer, size in self._sizes:
            if buffer.untyped_storage().size() == 0:
                buffer.untyped_storage().resize_(size)
        super().allocate(device, needs_transpose)
        if self._records and [id(b) for b, _ in self._sizes] != [id(b) for b in self._both]:
            if self._keep is not None:
                self._keep()
            self._sizes = [(buffer, buffer.untyped_storage().size()) for buffer in self._both]
            fsdp.free_with(self._records[0](), self._both)
            ids = frozenset(id(buffer) for buffer in self._both)
            self._keep = weakref.finalize(self, fsdp.keep, self._records[0], ids)

    @property
    def _packs_apart(self) -> bool:
        # What is gathered is packed anew in any case.
        return super()._packs_apart and not self._records

    def _state(self) -> list[State]:
        state: list[State] = []
        for weight, given in zip(self.weights, self._given, strict=True):
            parameter = cast(Parameter, weight.parameter())
            content = weight.content(parameter)
            frozen = not parameter.requires_grad
            due = weight.search_overdue(content) if frozen else weight.awaits_training and torch.is_grad_enabled()
            compute: Any = local(cast(Tensor, given()))
            # A gathered weight that is written before it is freed (`model.unshard()`); else always the same number.
            written = version_of(compute) if self._records else 0
            state.append((content, weight.revision, due, written))
        return state
