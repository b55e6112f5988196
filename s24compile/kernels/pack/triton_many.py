"""Packing all weights of a model in a few launches: one for each kind of (dtypes, storage) among them.

GPT-2 124M has 24 FFN weights of 2.4 million elements; launched one by one, the CPU takes longer than the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.pack import triton_tiles as tiles
from s24compile.kernels.pack.triton import (
    pack_transposable,
    pack_weight_,
    pattern_table,
    regions,
    supports_operand,
    unaligned_operand,
    whole_atoms,
)
from s24compile.kernels.pack.triton_batch import table
from s24compile.kernels.pack.triton_blocks import pack_many
from s24compile.kernels.pack.triton_tiles import TRITON_DTYPES, launch

Packed = tuple[Tensor, Tensor]


def supports_weights(
    weights: Sequence[Tensor],
    counts: Sequence[int],
    patterns: Sequence[Tensor],
    values: Sequence[Tensor],
    metadata: Sequence[Tensor],
    values_t: Sequence[Tensor],
    metadata_t: Sequence[Tensor],
    select: str,
    search: bool,
    format: str,
    weight_layout: str,
) -> str | None:
    """As `pack_weight_`, for each operand."""
    if select != "transposable" and not all(p.is_contiguous() for p in patterns):
        return "takes contiguous pair numbers only"
    reasons = [supports_operand(w, values[0].dtype, format) for w in weights] + [
        unaligned_operand(v) for v in (*values, *values_t)
    ]
    return next((reason for reason in reasons if reason), None)


def _entry(
    w: Tensor, patterns: Tensor, operand: Packed, transposed: Packed | None
) -> tuple[tuple[object, ...], tuple[int, ...]] | None:
    """(what a launch shares, the words of one weight [n, k]), or None where `pack_many` does not take it."""
    flipped = abs(w.stride(0)) < abs(w.stride(1))
    view, numbers = (w.t(), patterns.t()) if flipped else (w, patterns)
    along, across = (transposed, operand) if flipped else (operand, transposed)
    pitch, inner = numbers.stride() if not flipped else (numbers.stride(1), numbers.stride(0))
    if view.stride(1) != 1 or inner != 1 or (view.stride(0) | view.shape[0] | view.shape[1]) % 8:
        return None
    words = [view.data_ptr(), view.stride(0), *view.shape, numbers.data_ptr(), pitch]
    for packed in (along, across):
        values, metadata = packed or operand
        if (values.data_ptr() | metadata.data_ptr()) % 16 or values.stride(0) % 8 or metadata.stride(0) % 16:
            return None
        words += [values.data_ptr(), values.stride(0), metadata.data_ptr(), metadata.stride(0)]
    if view.data_ptr() % 16:
        return None
    return (w.device, w.dtype, operand[0].dtype, flipped, along is not None, across is not None), tuple(words)


def pack_weights_(
    weights: Sequence[Tensor],
    counts: Sequence[int],
    patterns: Sequence[Tensor],
    values: Sequence[Tensor],
    metadata: Sequence[Tensor],
    values_t: Sequence[Tensor],
    metadata_t: Sequence[Tensor],
    select: str,
    search: bool,
    format: str,
    weight_layout: str,
) -> None:
    """See fused/reference.py. Row-wise rules, and weights with odd storage, take a launch each."""
    launches: dict[tuple[object, ...], list[tuple[int, ...]]] = {}
    start = 0
    for i, count in enumerate(counts):
        stop = start + count
        buffers = values[i], metadata[i], values_t[i] if values_t else None, metadata_t[i] if metadata_t else None
        logical = [w.detach() if weight_layout == "out_in" else w.detach().t() for w in weights[start:stop]]
        numbers = patterns[start:stop]
        start = stop
        if select != "transposable" or not whole_atoms(logical):
            stacked = [w if weight_layout == "out_in" else w.t() for w in logical]
            pack_weight_(stacked, numbers, *buffers, None, select, search, format, weight_layout)
            continue
        for w, pattern, (operand, transposed) in zip(logical, numbers, regions(logical, *buffers), strict=True):
            found = _entry(w, pattern, operand, transposed)
            if found is None:
                pack_transposable(w, pattern, operand, transposed, search=search)
            else:
                launches.setdefault(found[0], []).append(found[1])
    for shared, entries in launches.items():
        _launch(shared, entries, search)


def _launch(shared: tuple[object, ...], entries: list[tuple[int, ...]], search: bool) -> None:
    device, weight, dtype, flipped, along, across = shared
    assert isinstance(device, torch.device)
    tile = tiles.BLOCKS_SEARCH if search else tiles.BLOCKS_GIVEN
    across_tiles = [-(-words[3] // tile.columns) for words in entries]
    programs = tuple(-(-words[2] // tile.rows) * count for words, count in zip(entries, across_tiles, strict=True))
    words = tuple((*entry, count) for entry, count in zip(entries, across_tiles, strict=True))
    even = all(words[2] % tile.rows == words[3] % tile.columns == 0 for words in entries)
    address, owners, total = table(device, words, programs)
    launch(
        pack_many, total, tile, device, address, owners, pattern_table(device),
        WEIGHT=TRITON_DTYPES[weight], DTYPE=TRITON_DTYPES[dtype], SEARCH=search, FLIPPED=flipped,
        ALONG=along, ACROSS=across, EVEN=even, BLOCK_R=tile.rows, BLOCK_C=tile.columns,
    )  # fmt: skip
