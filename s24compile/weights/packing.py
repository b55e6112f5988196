"""Packing operands: which masks are searched on the way, and what is noted of the weights.

Legend: N output features (rows of all weights stacked), K input features.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

from s24compile.kernels import providers
from s24compile.torch_internals import fsdp
from s24compile.weights.agreement import agree
from s24compile.weights.contents import Content
from s24compile.weights.device_watch import take_samples
from s24compile.weights.mask import writing_state
from s24compile.weights.operand import Buffers, Operand
from s24compile.weights.schedule import CLOCK
from s24compile.weights.sharded_operand import ShardedOperand
from s24compile.weights.sparse_weight import SparseWeight
from s24compile.weights.unheld import warn_of_unheld

_Kind = tuple[object, ...]


def freshen(operand: Operand, needs_transpose: bool) -> Buffers:
    """(values, metadata[, descale, probes][, values_t, metadata_t]); packs if the weights have changed."""
    if operand.stale(needs_transpose):
        pack_all([(operand, needs_transpose)])
    return operand.buffers(needs_transpose)


def pack_all(stale: Sequence[tuple[Operand, bool]], *, silently: bool = False) -> None:
    """Packs several operands, those of a kind in one call: a launch costs the CPU more than a small weight the GPU.

    Args:
        silently: leave the version counters of the buffers as they are: for weights that may well not have changed, so
            that backwards which wait for them go on. Where they have, those use the new weights, as a dense model's do
            after a write through `.data`.
    """
    training = torch.is_grad_enabled() or _is_to_be_recomputed()
    wanted: dict[Operand, bool] = {}
    for operand, needs_transpose in stale:
        wanted[operand] = wanted.get(operand, False) or needs_transpose
    again = {op: transpose for op, transpose in wanted.items() if isinstance(op, ShardedOperand) and op.only_freed}
    if again:
        pack_again(again)
        wanted = {operand: transpose for operand, transpose in wanted.items() if operand not in again}
    if training:
        agree([weight for operand in wanted for weight in operand.weights])
        warn_of_unheld([weight for operand in wanted for weight in operand.weights])
    for device in dict.fromkeys(operand.parameters()[0].device for operand in wanted):
        with writing_state(device):
            here = [(op, transpose) for op, transpose in wanted.items() if op.parameters()[0].device == device]
            settled: set[SparseWeight] = set()
            packs = [_begin(op, transpose, settled, training) for op, transpose in here]
            kinds: dict[_Kind, list[_Pack]] = {}
            # Those that search come first: a weight's other operands read the patterns that they write.
            for pack in sorted(packs, key=lambda pack: not pack.search):
                kinds.setdefault(pack.kind, []).append(pack)
            for together in kinds.values():
                _pack_kind(together, silently)
            for pack in packs:
                pack.note()
            # Only now: a weight with two operands (two dtypes) changes its revision for both.
            for pack in packs:
                pack.operand.note_pack()
            sampled = [pack.operand for pack in packs if not pack.operand.gathered]
            take_samples(dict.fromkeys(weight for operand in sampled for weight in operand.weights), training)


def pack_again(freed: Mapping[ShardedOperand, bool]) -> None:
    """Packs what FSDP2 has freed since it was packed, of the same numbers: with the masks as they are, and so that
    backwards which wait for the buffers go on."""
    for device in dict.fromkeys(operand.parameters()[0].device for operand in freed):
        with writing_state(device):
            kinds: dict[_Kind, list[_Pack]] = {}
            buffers: list[Tensor] = []
            for operand, needs_transpose in freed.items():
                if operand.parameters()[0].device == device:
                    operand.allocate(device, needs_transpose or bool(operand.transposed))
                    patterns = [
                        weight.prepare(p) for weight, p in zip(operand.weights, operand.parameters(), strict=True)
                    ]
                    pack = _Pack(operand, operand.parameters(), [], patterns, [], False, _scale(operand.weights))
                    kinds.setdefault(pack.kind, []).append(pack)
                    buffers += operand.buffers(True)
                    operand.times_packed += 1
            with fsdp.preserving_versions(tuple(buffers)):
                for together in kinds.values():
                    _pack_kind(together, silently=True)


@dataclasses.dataclass(frozen=True)
class _Pack:
    """One operand on its way through a packing op."""

    operand: Operand
    parameters: tuple[Tensor, ...]
    contents: list[Content]
    patterns: list[Tensor]
    due: list[bool]
    search: bool
    scale: Tensor | None

    @property
    def kind(self) -> _Kind:
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


def _begin(operand: Operand, needs_transpose: bool, settled: set[SparseWeight], training: bool) -> _Pack:
    """Allocates what a pack writes, and settles which masks it searches. Call inside `writing_state`.

    Args:
        settled: the weights that operands before this one search, to which it adds its own. Whoever searches again
            would remember the new patterns as the ones before.
        training: whether the pack is for a forward with gradients.
    """
    weights, parameters = operand.weights, operand.parameters()
    for weight in weights:
        # Another operand of the weight packs it again only if it learns of this before the sample is taken anew.
        if weight.contents.is_known(weight.present_content):
            weight.find_unseen_write()
    contents = [weight.present_content for weight in weights]
    operand.allocate(parameters[0].device, needs_transpose or bool(operand.transposed))
    due = [
        w not in settled and w.begin_pack(p, c, training=training and w.takes_gradient)
        for w, p, c in zip(weights, parameters, contents, strict=True)
    ]
    patterns = [w.prepare(p) for w, p in zip(weights, parameters, strict=True)]
    # The packing op searches all of its weights or none.
    together = all(due)
    for weight, parameter, searching in zip(weights, parameters, due, strict=True):
        if searching:
            settled.add(weight)
            weight.remember_patterns()
            if not together:
                weight.search(parameter)
    return _Pack(operand, parameters, contents, patterns, due, together, _scale(weights))


def _scale(weights: Sequence[SparseWeight]) -> Tensor | None:
    scales = [weight.scale for weight in weights if weight.scale is not None]
    if not scales:
        return None
    return scales[0] if len(scales) == 1 else torch.stack(scales)


def _pack_kind(packs: list[_Pack], silently: bool) -> None:
    first = packs[0]
    operand, request = first.operand, first.operand.request
    options = (operand.weights[0].recipe.select, first.search, request.format, request.weight_layout)
    if request.eight_bit:
        _run("pack_weights_fp8_", silently, *_stacks(packs), *_scales(packs), *options)
    elif len(packs) == 1:
        transposed = operand.transposed or (None, None)
        buffers = (first.patterns, *operand.forward, *transposed)
        _run("pack_weight_", silently, list(first.parameters), *buffers, first.scale, *options)
    else:
        _run("pack_weights_", silently, *_stacks(packs), *options)


def _stacks(packs: list[_Pack]) -> tuple[Sequence[Tensor] | Sequence[int], ...]:
    """Weights, how many each operand stacks, patterns, and the buffers of all operands: as `kernels.stacks.Stacks`."""
    buffers = [
        [pair[place] for pack in packs if (pair := side(pack.operand))]
        for side in (lambda operand: operand.forward, lambda operand: operand.transposed)
        for place in (0, 1)
    ]
    return (
        [parameter for pack in packs for parameter in pack.parameters],
        [len(pack.parameters) for pack in packs],
        [patterns for pack in packs for patterns in pack.patterns],
        *buffers,
    )


def _scales(packs: list[_Pack]) -> tuple[list[Tensor], list[Tensor]]:
    """The descale that each operand of eight bits is given, and S-STE's scale of each weight that has one."""
    descales = [pack.operand.forward[2] for pack in packs]
    return descales, [beta for pack in packs if pack.scale is not None for beta in pack.scale.reshape(-1)]


def _is_to_be_recomputed() -> bool:
    """Whether a reentrant checkpoint (`use_reentrant=True`) runs this forward: without gradients, but for training."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back
    return False


def _run(op: str, silently: bool, *args: Any) -> None:
    """A packing op. Version counters are moved by the op, not by the kernels that it runs on a GPU."""
    if silently:
        providers.run(op, *args)
    else:
        getattr(torch.ops.s24, op).default(*args)
