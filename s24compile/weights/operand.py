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

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.weights.contents import Content
from s24compile.weights.device_watch import take_samples
from s24compile.weights.mask import writing_state
from s24compile.weights.operand_request import OperandRequest
from s24compile.weights.schedule import CLOCK
from s24compile.weights.sparse_weight import SparseWeight
from s24compile.weights.storage_reference import has_expired

log = logging.getLogger("s24compile")

UNHELD_STEPS = 40
"""Steps of optimizers that do not hold a weight, or edits where none steps, after which a training forward says so."""

Buffers = tuple[Tensor, ...]
_Key = tuple[object, ...]
_State = tuple[Content, int, bool]
"""(content, revision, whether another mask is due although neither has changed) of one weight."""


class Operand:
    """The packed form of one or two weights at one dtype and format."""

    def __init__(self, weights: tuple[SparseWeight, ...], request: OperandRequest, config: Config) -> None:
        self.weights = weights
        self.request = request
        self.config = config
        self.forward: Buffers = ()
        """(values, metadata) of W~ [N, K]; () before the first pack."""
        self.transposed: Buffers = ()
        """(values, metadata) of W~^T [K, N]; () until a backward asked for it."""
        self._both: Buffers = ()
        self.times_packed = 0
        """How often it has been packed."""
        self._packed_at: list[_State] | None = None
        self._warned = False
        self._source = _kind(self.parameters())

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

    def freshen(self, needs_transpose: bool) -> Buffers:
        """(values, metadata), or (values, metadata, values_t, metadata_t); packs if the weights have changed."""
        if self.stale(needs_transpose):
            pack_all([(self, needs_transpose)])
        return self.buffers(needs_transpose)

    def stale(self, needs_transpose: bool) -> bool:
        """Whether the buffers asked for have to be packed before they are read."""
        return self.shows_change(needs_transpose) or self._written()

    def shows_change(self, needs_transpose: bool) -> bool:
        """Whether they have to be, by what shows without a look at numbers."""
        changed = self._packed_at != self._state() or self.config.freshness == "always"
        return changed or (needs_transpose and not self.transposed)

    def buffers(self, needs_transpose: bool) -> Buffers:
        """The buffers as they are."""
        return self._both if needs_transpose else self.forward

    def forget(self) -> None:
        """Makes the next `freshen` pack, whatever it can see."""
        self._packed_at = None
        CLOCK.moves += 1

    def parameters(self) -> tuple[Parameter, ...]:
        """The Parameters packed; the caller of a forward holds them alive."""
        return tuple(cast(Parameter, weight.parameter()) for weight in self.weights)

    def _state(self) -> list[_State]:
        # Once a forward and weight, in the hot path: `SparseWeight.content` written out.
        state: list[_State] = []
        for weight in self.weights:
            parameter = cast(Parameter, weight.parameter())
            try:
                version = parameter._version
            except RuntimeError:  # an inference tensor
                version = -1
            contents = weight.contents
            if has_expired(contents.storage.cdata):
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
        if not any([weight.contents.unseen for weight in self.weights]) or (needs_transpose and not self.transposed):
            return False
        before = self._packed_at or []
        return [(*c[:3], c[4], *rest) for c, *rest in before] == [(*c[:3], c[4], *rest) for c, *rest in self._state()]

    def _written(self) -> bool:
        """Whether a weight, which by all that shows has not changed, has other numbers than it was packed with."""
        return any([weight.find_unseen_write() for weight in self.weights])

    def begin(self, needs_transpose: bool, settled: set[SparseWeight], training: bool) -> Pack:
        """Allocates what a pack writes, and settles which masks it searches. Call inside `writing_state`.

        Args:
            settled: the weights that operands before this one search, to which it adds its own. Whoever searches again
                would remember the new patterns as the ones before.
            training: whether the pack is for a forward with gradients.
        """
        parameters = self.parameters()
        for weight, parameter in zip(self.weights, parameters, strict=True):
            # Another operand of the weight packs it again only if it learns of this before the sample is taken anew.
            if weight.contents.is_known(weight.content(parameter)):
                weight.find_unseen_write()
        contents = [w.content(p) for w, p in zip(self.weights, parameters, strict=True)]
        self._allocate(parameters[0].device, needs_transpose or bool(self.transposed))
        due = [
            w not in settled and w.begin_pack(p, c, training=training and p.requires_grad)
            for w, p, c in zip(self.weights, parameters, contents, strict=True)
        ]
        patterns = [w.prepare(p) for w, p in zip(self.weights, parameters, strict=True)]
        # The packing op searches all of its weights or none.
        together = all(due)
        for weight, parameter, searching in zip(self.weights, parameters, due, strict=True):
            if searching:
                settled.add(weight)
                weight.remember_patterns()
                if not together:
                    weight.search(parameter)
        return Pack(self, parameters, contents, patterns, due, together, self._scale())

    def end(self) -> None:
        """Notes that the buffers now are those of the weights."""
        CLOCK.moves += 1
        self.times_packed += 1
        self._packed_at = self._state()
        self._source = _kind(self.parameters())  # a bf16 operand of an fp32 weight serves on once that is bf16

    def warn_if_unheld(self) -> None:
        """Says once that weights train which no optimizer seen so far holds, or that there is none at all."""
        if self._warned or not torch.is_grad_enabled():
            return
        training = [w for w, p in zip(self.weights, self.parameters(), strict=True) if p.requires_grad and not w.held]
        missed = [weight.name for weight in training if weight.steps_missed >= UNHELD_STEPS]
        written = [weight.name for weight in training if weight.edits >= UNHELD_STEPS and not weight.steps_missed]
        if missed:
            log.warning(
                "optimizers have made %d steps, none of them with %s, which trains sparse: its masks and phases "
                "follow the steps of any optimizer, but no masked decay reaches it. Is the parameter in the optimizer? "
                "(Optimizers that are no torch.optim.Optimizer are not seen.)",
                UNHELD_STEPS,
                " and ".join(missed),
            )
        elif written:
            log.warning(
                "%s, which trains sparse, was written before %d forwards, and no torch.optim.Optimizer has stepped: "
                "masks, phases (dense_after, total_steps) and masked decay go by their steps, and stand still. Derive "
                "what updates the weights from torch.optim.Optimizer, or call s24compile.refresh(model, search=True) "
                "and s24compile.set_phase(model, ...) when they are due.",
                " and ".join(written),
                UNHELD_STEPS,
            )
        self._warned = bool(missed or written)

    def _scale(self) -> Tensor | None:
        scales = [weight.scale for weight in self.weights if weight.scale is not None]
        if not scales:
            return None
        return scales[0] if len(scales) == 1 else torch.stack(scales)

    def _allocate(self, device: torch.device, needs_transpose: bool) -> None:
        rows, cols, dtype = sum(self.request.rows), self.request.cols, self.request.dtype
        form = FORMATS[self.request.format]
        # Under "always" a second forward before the first one's backward must not write into what that saved.
        always = self.config.freshness == "always"
        if always or not self.forward or self.forward[0].device != device:
            self.forward, self.transposed = form.empty(rows, cols, dtype, device), ()
        if needs_transpose and not self.transposed:
            self.transposed = FORMATS[form.transposed].empty(cols, rows, dtype, device)
        self._both = (*self.forward, *self.transposed)


@dataclasses.dataclass(frozen=True)
class Pack:
    """One operand on its way through a packing op."""

    operand: Operand
    parameters: tuple[Parameter, ...]
    contents: list[Content]
    patterns: list[Tensor]
    due: list[bool]
    search: bool
    scale: Tensor | None

    @property
    def kind(self) -> _Key:
        """Packs of one kind go through one call of the multi-operand op; a scaled one goes alone."""
        operand = self.operand
        request = operand.request
        shared = (operand.forward[0].device, request.dtype, request.format, request.weight_layout)
        alone = id(self) if self.scale is not None else 0
        return (*shared, operand.weights[0].recipe.select, self.search, bool(operand.transposed), alone)

    def note(self) -> None:
        """Tells the weights which of them have a new mask, and what they were packed from."""
        for weight, content, searching in zip(self.operand.weights, self.contents, self.due, strict=True):
            weight.packed_at = CLOCK.tick
            weight.contents.note_pack(content)
            if searching:
                weight.searched(content)
            else:
                weight.met(content)


def pack_all(stale: Sequence[tuple[Operand, bool]], *, silently: bool = False) -> None:
    """Packs several operands, those of a kind in one call: a launch costs the CPU more than a small weight the GPU.

    Args:
        silently: leave the version counters of the buffers as they are: for weights that may well not have changed, so
            that backwards which wait for them go on. Where they have, those use the new weights, as a dense model's do
            after a write through `.data`.
    """
    training = torch.is_grad_enabled()
    wanted: dict[Operand, bool] = {}
    for operand, needs_transpose in stale:
        wanted[operand] = wanted.get(operand, False) or needs_transpose
        operand.warn_if_unheld()
    for device in dict.fromkeys(operand.parameters()[0].device for operand in wanted):
        with writing_state(device):
            here = [(op, transpose) for op, transpose in wanted.items() if op.parameters()[0].device == device]
            settled: set[SparseWeight] = set()
            packs = [op.begin(transpose, settled, training) for op, transpose in here]
            kinds: dict[_Key, list[Pack]] = {}
            # Those that search come first: a weight's other operands read the patterns that they write.
            for pack in sorted(packs, key=lambda pack: not pack.search):
                kinds.setdefault(pack.kind, []).append(pack)
            for together in kinds.values():
                _pack_kind(together, silently)
            for pack in packs:
                pack.note()
            # Only now: a weight with two operands (two dtypes) changes its revision for both.
            for pack in packs:
                pack.operand.end()
            take_samples(dict.fromkeys(weight for pack in packs for weight in pack.operand.weights), training)


def _pack_kind(packs: list[Pack], silently: bool) -> None:
    first = packs[0]
    operand, request = first.operand, first.operand.request
    options = (operand.weights[0].recipe.select, first.search, request.format, request.weight_layout)
    if len(packs) == 1:
        transposed = operand.transposed or (None, None)
        buffers = (first.patterns, *operand.forward, *transposed)
        _run("pack_weight_", silently, list(first.parameters), *buffers, first.scale, *options)
        return
    values, metadata = zip(*(pack.operand.forward for pack in packs), strict=True)
    values_t, metadata_t = zip(*(p.operand.transposed for p in packs), strict=True) if operand.transposed else ((), ())
    _run(
        "pack_weights_",
        silently,
        [parameter for pack in packs for parameter in pack.parameters],
        [len(pack.parameters) for pack in packs],
        [patterns for pack in packs for patterns in pack.patterns],
        *(list(buffers) for buffers in (values, metadata, values_t, metadata_t)),
        *options,
    )


def _run(op: str, silently: bool, *args: Any) -> None:
    """A packing op. Version counters are moved by the op, not by what runs it on a GPU."""
    if silently:
        providers.run(op, *args)
    else:
        getattr(torch.ops.s24, op).default(*args)


def _kind(parameters: tuple[Parameter, ...]) -> list[tuple[torch.dtype, torch.device]]:
    return [(p.dtype, p.device) for p in parameters]
