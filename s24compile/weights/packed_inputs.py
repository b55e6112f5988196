"""What a call of a compiled graph needs of the weights: which operands, whether they are still true, their buffers.

A forward without a step before it, of a frozen model or in an evaluation, asks all of this for nothing. So what was
found is remembered by the parameters that arrive, and looked at again only where something has moved that shows.
benchmarks/host_time.py measures it.
"""

from __future__ import annotations

import logging
import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from s24compile.errors import ModelError
from s24compile.torch_internals.tensors import storage_expired, write_count
from s24compile.weights.device_watch import DeviceWatch, watch_of
from s24compile.weights.following import note_owners
from s24compile.weights.operand import Operand
from s24compile.weights.operand_map import OPERANDS, FakeOperand
from s24compile.weights.operand_request import OperandRequest
from s24compile.weights.packing import pack_all
from s24compile.weights.regathering import pack_before_backward
from s24compile.weights.registry import WEIGHTS
from s24compile.weights.sample import HostSample
from s24compile.weights.schedule import CLOCK, DRIVEN
from s24compile.weights.sharded_operand import ShardedOperand
from s24compile.weights.sharding import is_gathered, local
from s24compile.weights.sparse_weight import SparseWeight

log = logging.getLogger("s24compile")

_address = Tensor.data_ptr


class Slot(Protocol):
    """One packed operand of a compiled graph."""

    @property
    def request(self) -> OperandRequest: ...

    @property
    def places(self) -> tuple[int, ...]:
        """At which of a call's arguments its parameters arrive."""

    def operand(self, args: Sequence[Any], /) -> Operand: ...


S = TypeVar("S", bound=Slot)


class PackedInputs(Generic[S]):
    """The packed weights of one compiled graph."""

    def __init__(self, slots: Sequence[S], args: Sequence[Any] = ()) -> None:
        """args: what the graph was captured with."""
        self.slots = tuple(slots)
        self._pick = _picker([place for slot in slots for place in slot.places])
        self._calls: dict[tuple[int, ...], _Call[S]] = {}
        self.are_freed = any(is_gathered(args[place]) for slot in slots for place in slot.places if args)
        """Whether FSDP2 frees packed weights after their forward, see `pack_before_backward`."""

    def dense_slots(self, args: Sequence[Any]) -> frozenset[S]:
        """The slots that are in their dense phase in a call with these arguments. Packs nothing."""
        return frozenset(slot for slot in self.slots if slot.operand(args).dense)

    def fresh(self, args: Sequence[Any]) -> tuple[frozenset[S], list[Tensor]]:
        """(slots that are in their dense phase, packed tensors of the others in order); packs what has changed."""
        if not self.slots:
            return frozenset(), []
        parameters = self._pick(args)
        key = tuple(map(id, parameters))
        call = self._calls.get(key)
        if call is None or call.generation != _generation():
            operands = [slot.operand(args) for slot in self.slots]
            if not self.are_freed:
                _refuse_late_gathering(operands)
            note_owners(parameters)
            # Those of fake parameters are nobody's.
            if any(isinstance(found, FakeOperand) for found in operands):
                return _Call(self.slots, operands, _generation()).packed()
            generation = _generation()
            self._calls = {k: known for k, known in self._calls.items() if known.generation == generation}
            call = self._calls[key] = _Call(self.slots, operands, generation)
        return call.fresh(parameters)

    def pack_before_backward(self, args: Sequence[Any], results: Sequence[Any]) -> None:
        """Where FSDP2 frees packed weights after this call, packs them again before its backward.

        Args:
            args: of the call.
            results: what it returned.
        """
        call = self._calls.get(tuple(map(id, self._pick(args))))
        freed = call.gathered() if call is not None else []
        if freed:
            pack_before_backward(results, freed)


class _Call(Generic[S]):
    """A graph's calls with the same parameters. Holds no operand alive: Dynamo keeps graphs longer than models."""

    def __init__(self, slots: tuple[S, ...], operands: list[Operand], generation: tuple[int, ...]) -> None:
        self.generation = generation
        self._operands = [
            (slot, weakref.ref(found), slot.request.needs_transpose)
            for slot, found in zip(slots, operands, strict=True)
        ]
        self._sharded = any(isinstance(found, ShardedOperand) for found in operands)
        self._gathered = all(found.gathered for found in operands)
        self._seen: tuple[object, ...] = ()
        """What showed when everything was true; () where nothing shows."""
        self._dense: frozenset[S] = frozenset()
        self._active: list[tuple[weakref.ref[Operand], bool]] = []
        """(operand, whether W^T is needed) of the slots that are in their sparse phase."""
        self._packs: list[tuple[int, int]] = []
        """Which they were, and how often packed, when the next six were noted."""
        self._looked = True
        """Whether they may have been packed since."""
        self._weights: list[weakref.ref[SparseWeight]] = []
        self._samples: list[HostSample] = []
        self._storages: list[int] = []
        self._remembers = False
        self._frozen = False
        self._turn = 0
        self._watches: dict[DeviceWatch, int] = {}
        """The watches of the weights' devices, and the number of the last comparison at the call before."""

    def fresh(self, parameters: tuple[Tensor, ...]) -> tuple[frozenset[S], list[Tensor]]:
        """See `PackedInputs.fresh`."""
        if self._sharded:
            parameters = tuple(map(local, parameters))
        try:
            versions = list(map(write_count, parameters))
        except RuntimeError:  # inference tensors have none
            versions = []
        addresses = list(map(_address, parameters))
        seen = CLOCK.moves, DRIVEN.generation, versions, addresses
        if seen == self._seen and self._is_remembered(parameters):
            all_packed = False
        else:
            all_packed = self._look_closely(parameters)
        # What has just been packed needs no second look; and after a forward that trains, a step comes first.
        if not all_packed:
            self._note_weights(parameters)
            if self._finds_unseen_writes():
                self._look_closely(parameters)
        self._seen = (CLOCK.moves, DRIVEN.generation, versions, addresses) if versions else ()
        return self._dense, self._buffers()

    def gathered(self) -> list[tuple[ShardedOperand, bool]]:
        """The operands in their sparse phase that FSDP2 frees, and whether W^T is needed of them."""
        found = [(ref(), transpose) for ref, transpose in self._active]
        return [(op, transpose) for op, transpose in found if isinstance(op, ShardedOperand) and op.gathered]

    def packed(self) -> tuple[frozenset[S], list[Tensor]]:
        """What a call with fake parameters needs."""
        self._settle()
        return self._dense, self._buffers()

    def _buffers(self) -> list[Tensor]:
        buffers: list[Tensor] = []
        for ref, transpose in self._active:
            found: Any = ref()  # its parameters have arrived, so it is there; a `cast` takes as long as the rest
            buffers += found.buffers(transpose)
        return buffers

    def _settle(self) -> list[tuple[Operand, bool]]:
        """Notes which slots are dense now. Returns the operands of the others."""
        active: list[tuple[Operand, bool]] = []
        dense: list[S] = []
        self._active = []
        for slot, ref, transpose in self._operands:
            found: Any = ref()
            if found.dense:
                dense.append(slot)
            else:
                active.append((found, transpose))
                self._active.append((ref, transpose))
        self._dense = frozenset(dense)
        return active

    def _look_closely(self, parameters: tuple[Tensor, ...]) -> bool:
        """Asks each operand, and packs the stale ones. Returns whether that was all of them."""
        active = self._settle()
        # What is gathered is packed whenever it is, whether it was written or not.
        devices = () if self._gathered else dict.fromkeys([parameter.device for parameter in parameters])
        watches = [watch for device in devices if (watch := watch_of(device)) is not None]
        self._watches = {watch: self._watches.get(watch, watch.number) for watch in watches}
        if self._watches:
            active = self._pack_written(active)
        stale = [(found, transpose) for found, transpose in active if found.shows_change(transpose)]
        if stale:
            pack_all(stale)
        self._looked = True
        if len(stale) < len(self._active):
            return False
        self._watches = {watch: watch.number for watch in watches}
        return True

    def _is_remembered(self, parameters: tuple[Tensor, ...]) -> bool:
        """Whether this call may go by what shows: all storages are there, and no weight is packed in any case."""
        self._note_weights(parameters)
        return self._remembers and not any(map(storage_expired, self._storages))

    def _note_weights(self, parameters: tuple[Tensor, ...]) -> None:
        """Notes what calls ask of the weights, if they have been packed since this was noted."""
        if not self._looked:
            return
        self._looked = False
        operands: list[Any] = [ref() for ref, _ in self._active]
        packs = [(id(found), found.times_packed) for found in operands]
        if packs == self._packs:
            return
        self._packs = packs
        self._weights, self._samples, self._storages, self._remembers = [], [], [], True
        for found in operands:
            if found.gathered:
                self._remembers = False
                continue
            for weight in found.weights:
                contents = weight.contents
                self._weights.append(weakref.ref(weight))
                self._storages.append(contents.storage.cdata)
                if isinstance(contents.sample, HostSample):
                    self._samples.append(contents.sample)
                # What an evaluation has set aside, and what is packed each time.
                if weight.awaits_training or (self._watches and contents.unseen) or weight.config.freshness != "auto":
                    self._remembers = False
        self._frozen = not any(parameter.requires_grad for parameter in parameters)

    def _finds_unseen_writes(self) -> bool:
        """Whether the numbers say of a weight, of which nothing else does, that it was written. Notes which."""
        for watch, number in self._watches.items():
            if watch.has_news():
                return True
            # One comparison is of all weights: a model of many graphs, called one after the other, needs but one.
            if number == watch.number and not watch.is_capturing:
                weights = [weight for ref in self._weights if (weight := ref()) is not None]
                with torch.inference_mode(False):  # what is made here serves any later call
                    watch.take([weight for weight in weights if weight.contents.is_asked_again()])
                    watch.look()
            self._watches[watch] = watch.number
        samples = self._samples
        if not samples:
            return False
        if self._frozen or not torch.is_grad_enabled():
            written = any(map(HostSample.differs, samples))
        else:
            # A forward that trains is soon followed by a step, after which all is packed: weights are looked at in one
            # place, and one of them in turn as a whole.
            self._turn += 1
            written = any(map(HostSample.differs_nearby, samples)) or samples[self._turn % len(samples)].differs()
        return written and bool([w for ref in self._weights if (w := ref()) is not None and w.find_unseen_write()])

    def _pack_written(self, active: list[tuple[Operand, bool]]) -> list[tuple[Operand, bool]]:
        """Packs the operands of weights on a GPU that were found written, if nothing else has changed about them.

        Returns: the others.
        """
        for watch in self._watches:
            note_written(watch.found())
        written = [pair for pair in active if pair[0].was_written_unseen(pair[1])]
        for weight in {weight for found, _ in written for weight in found.weights if weight.contents.unseen}:
            weight.note_unseen_write()  # it may have been, once more
        if written:
            pack_all(written, silently=True)
        return [pair for pair in active if pair not in written] if written else active


def _refuse_late_gathering(operands: Sequence[Operand]) -> None:
    """Dynamo's guards do not ask for hooks: what it compiled before `fully_shard` gave a module some runs without them,
    and nothing gathers its weights in time or reduces their gradients."""
    late = next((found for found in operands if found.gathered), None)
    if late is not None:
        raise ModelError(
            what=f"weight {late.weights[0].name!r}",
            found="it is gathered by FSDP2 (fully_shard), in a graph that was compiled before it was",
            accepted="apply fully_shard before the first forward, or call torch._dynamo.reset() after it",
        )


def note_written(weights: Sequence[SparseWeight]) -> None:
    """Notes that these weights were found written, a little late, and says so."""
    for weight in weights:
        weight.note_unseen_write()
    if weights:
        log.warning(
            "%d sparse weight(s) (%s, ...) were written where nothing shows it (`p.data.copy_(...)`): since then one "
            "or two forwards have used the weights of before. From now on they are packed before each forward. "
            "s24compile.refresh(model) after such a write, or freshness='always', is exact from the first one on; "
            "docs/trainers.md says more",
            len(weights),
            weights[0].name,
        )


def _generation() -> tuple[int, ...]:
    """Moves when a Parameter may have got another operand, or its id another owner."""
    return OPERANDS.generation, WEIGHTS.generation, WEIGHTS.deaths


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Tensor, ...]]:
    """The arguments at these places of a call."""
    if len(places) == 1:
        return lambda args: (args[places[0]],)
    picked: Any = operator.itemgetter(*places) if places else lambda args: ()
    return cast("Callable[[Sequence[Any]], tuple[Tensor, ...]]", picked)
