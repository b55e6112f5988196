"""Packing all weights of a model in a few launches: one for each kind of (dtypes, storage) among them.

GPT-2 124M has 24 FFN weights of 2.4 million elements; launched one by one, the CPU takes longer than the GPU.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.pack.triton_weight import pack_weight_
from s24compile.kernels.stacks import Packing, Stacks
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.batch import remembered, table
from s24compile.kernels.triton.blocks import pack_many
from s24compile.kernels.triton.launch import TRITON_DTYPES, launch
from s24compile.kernels.triton.packing import formats_of_sides, pattern_table
from s24compile.kernels.triton.parts import Buffers, Part, parts, separable
from s24compile.kernels.triton.supports import supports_dtypes, unaligned_operand, uneven_halves
from s24compile.kernels.triton.tiles import Tile


def supports_weights(stacks: Stacks, packing: Packing) -> str | None:
    """As `pack_weight_`, for each operand."""
    format = packing.format
    if packing.select != "transposable" and not all(p.is_contiguous() for p in stacks.patterns):
        return "takes contiguous pair numbers only"
    # By kinds, not by weights: this runs at every call.
    kinds = {(w.dtype, v.dtype) for w in stacks.weights for v in stacks.values[:1]}
    reasons = [supports_dtypes(w, v, format) for w, v in kinds]
    reasons += [unaligned_operand(v) for v in (*stacks.values, *stacks.values_t)]
    reasons += [uneven_halves(v.shape[0], format) for v in stacks.values]
    return next((reason for reason in reasons if reason), None)


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What the weights of one launch have in common."""

    device: torch.device
    weight: torch.dtype
    packed: torch.dtype
    flipped: bool
    along: str
    across: str
    """Formats of the two operands: `pack_tile`."""


def _entry(w: Tensor, patterns: Tensor, part: Part, format: str) -> tuple[_Shared, tuple[int, ...]] | None:
    """(what a launch shares, the words of one weight [n, k]), or None where `pack_many` does not take it."""
    operand, transposed, split = part
    flipped = abs(w.stride(0)) < abs(w.stride(1))
    view, numbers = (w.t(), patterns.t()) if flipped else (w, patterns)
    along, across = (transposed, operand) if flipped else (operand, transposed)
    pitch, inner = numbers.stride() if not flipped else (numbers.stride(1), numbers.stride(0))
    if view.stride(1) != 1 or inner != 1 or (view.stride(0) | view.shape[0] | view.shape[1]) % 8:
        return None
    words = [view.data_ptr(), view.stride(0), *view.shape, numbers.data_ptr(), pitch]
    for packed in (along, across):
        values, cells = packed or operand
        if (values.data_ptr() | cells.data_ptr()) % 16 or values.stride(0) % 8 or cells.stride(0) % 16:
            return None
        words += [values.data_ptr(), values.stride(0), cells.data_ptr(), cells.stride(0)]
    if view.data_ptr() % 16:
        return None
    sides = formats_of_sides(format, flipped, True, transposed is not None)
    return _Shared(w.device, w.dtype, operand.values.dtype, flipped, *sides), (*words, split)


def pack_weights_(stacks: Stacks, packing: Packing) -> None:
    """See pack/reference.py. Row-wise rules, and weights with odd storage, take a launch each.

    How to launch is worked out once for each set of addresses and shapes: slicing a hundred buffers takes the CPU
    several times as long as packing all weights of GPT-2 124M takes the GPU.
    """
    weights, counts, *buffers = stacks
    addresses = tuple([x.data_ptr() for tensors in (weights, *buffers) for x in tensors])
    shapes = tuple([(x.shape, x.stride(), x.dtype) for x in (*weights, *stacks.values)])
    key = addresses, shapes, tuple(counts), packing
    make = functools.partial(_work_out, stacks, packing)
    found = remembered(_KNOWN, _KNOWN_KEPT, key, weights[0].device, make)
    for launch_one in found.launches:
        _launch(*launch_one)
    if found.alone:
        each = list(stacks.each())
        for i in found.alone:
            pack_weight_(each[i], None, packing)


@dataclasses.dataclass(frozen=True)
class _Launches:
    """Launches that pack many weights, and the operands that need launches of their own. Holds addresses only."""

    launches: tuple[tuple[_Shared, Tensor, Tensor, int, bool, bool, Tile], ...]
    alone: tuple[int, ...]


_KNOWN: dict[tuple[object, ...], _Launches] = {}
_KNOWN_KEPT = 16


def _work_out(stacks: Stacks, packing: Packing) -> _Launches:
    select, search, format, _ = packing
    kinds: dict[_Shared, list[tuple[int, ...]]] = {}
    alone: list[int] = []
    for i, stack in enumerate(stacks.each()):
        operand, transposed = Buffers.of(stack.values, stack.metadata, format), None
        if stack.values_t is not None and stack.metadata_t is not None:
            transposed = Buffers.of(stack.values_t, stack.metadata_t, FORMATS[format].transposed)
        logical = packing.logical(stack.weights)
        found: list[tuple[_Shared, tuple[int, ...]] | None] = [None]
        if select == "transposable" and separable(logical, format, transposed is not None):
            filled = parts(logical, operand, transposed, format)
            found = [_entry(w, p, part, format) for w, p, part in zip(logical, stack.patterns, filled, strict=True)]
        if any(entry is None for entry in found):
            alone.append(i)
        for shared, words in (entry for entry in found if entry is not None and i not in alone):
            kinds.setdefault(shared, []).append(words)
    tile = tiles.MANY_SEARCH if search else tiles.BLOCKS_GIVEN
    launches = []
    for shared, entries in kinds.items():
        across = [-(-entry[3] // tile.columns) for entry in entries]
        programs = tuple(-(-entry[2] // tile.rows) * count for entry, count in zip(entries, across, strict=True))
        rows = tuple((*words, count, split) for (*words, split), count in zip(entries, across, strict=True))
        even = all(entry[2] % tile.rows == entry[3] % tile.columns == 0 for entry in entries)
        launches.append((shared, *table(shared.device, rows, programs), even, search, tile))
    return _Launches(tuple(launches), tuple(alone))


def _launch(
    shared: _Shared, address: Tensor, owners: Tensor, programs: int, even: bool, search: bool, tile: Tile
) -> None:
    launch(
        pack_many, programs, tile, shared.device, address, owners, pattern_table(shared.device),
        WEIGHT=TRITON_DTYPES[shared.weight], DTYPE=TRITON_DTYPES[shared.packed],
        MASK="search" if search else "numbers", FLIPPED=shared.flipped,
        ALONG=shared.along, ACROSS=shared.across, EVEN=even,
        BLOCK_R=tile.rows, BLOCK_C=tile.columns,
    )  # fmt: skip
