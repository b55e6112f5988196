"""Weights into eight bits: their amax, then W and W^T from one read of each weight; a launch each.

Legend: N, K logical rows and columns of the stacked weights; W [n, k] one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.fp8 import triton_tiles as tiles
from s24compile.kernels.fp8.triton_amax import raise_to_amax
from s24compile.kernels.fp8.triton_blocks import pack_blocks
from s24compile.kernels.fp8.triton_cast import KINDS
from s24compile.kernels.fp8.triton_rows import pack_rows
from s24compile.kernels.fp8.triton_store import ATOM, whole_atoms
from s24compile.kernels.stacks import Packing, Stack, Stacks
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.packing import pattern_table
from s24compile.kernels.triton.parts import Buffers, Part, parts, separable
from s24compile.kernels.triton.supports import supports_reading, uneven_halves

NARROW = torch.float8_e4m3fn
"""What stands for either dtype where only the width matters."""


def supports_weights(
    stacks: Stacks, descales: Sequence[Tensor], scales: Sequence[Tensor], packing: Packing
) -> str | None:
    """Formats of sm90, buffers as `Format.empty` makes them."""
    format = packing.format
    if format not in ("sm90", "sm90_gated"):
        return f"writes eight bits in the formats of sm90 only, not {format}"
    if packing.select != "transposable" and not all(p.is_contiguous() for p in stacks.patterns):
        return "takes contiguous pair numbers only"
    for buffer in (*stacks.values, *stacks.values_t):
        if buffer.dtype not in KINDS:
            return f"writes e4m3 and e5m2 only, not {buffer.dtype}"
        if buffer.stride(0) % 16 or buffer.stride(1) != 1 or buffer.storage_offset() % 4:
            return f"packs into rows of whole 16 bytes only, not into strides {buffer.stride()}"
    each = [packing.logical(stack.weights) for stack in stacks.each()] if scales else []
    if not all(separable(logical, format, False, NARROW) for logical in each):
        return "takes one scale only for weights that share an atom of 64 rows"
    reasons = (uneven_halves(v.shape[0], format) for v in stacks.values)
    return supports_reading(*stacks.weights) or next((reason for reason in reasons if reason), None)


def pack_weights_fp8_(stacks: Stacks, descales: Sequence[Tensor], scales: Sequence[Tensor], packing: Packing) -> None:
    """See fp8/reference.py. Two reads of each weight: the scale is that of the whole operand."""
    sizes = torch.zeros(len(stacks.counts), dtype=torch.float32, device=stacks.weights[0].device)
    start = 0
    for i, (stack, descale) in enumerate(zip(stacks.each(), descales, strict=True)):
        stop = start + len(stack.weights)
        betas, amax = scales[start:stop], sizes[i : i + 1]
        for number, w in enumerate(stack.weights):
            if not betas:
                raise_to_amax(amax, w)
            else:
                own = torch.zeros_like(amax)
                raise_to_amax(own, w)
                torch.maximum(amax, own * betas[number].float().abs(), out=amax)
        _pack_stack(stack, amax, descale, betas, packing)
        start = stop


def _pack_stack(stack: Stack, amax: Tensor, descale: Tensor, betas: Sequence[Tensor], packing: Packing) -> None:
    logical, patterns = packing.logical(stack.weights), stack.patterns
    both = stack.values_t is not None and stack.metadata_t is not None
    if separable(logical, packing.format, both, NARROW):
        _pack_parts(logical, patterns, stack, amax, descale, betas, packing)
        return
    # Parts that meet within an atom of metadata are copied into one weight first.
    joined = torch.cat(list(patterns))
    _pack_parts([torch.cat(logical)], [joined], stack, amax, descale, (), packing)
    for pattern, found in zip(patterns, joined.split([p.shape[0] for p in patterns]), strict=True):
        pattern.copy_(found)


def _pack_parts(
    logical: Sequence[Tensor],
    patterns: Sequence[Tensor],
    stack: Stack,
    amax: Tensor,
    descale: Tensor,
    betas: Sequence[Tensor],
    packing: Packing,
) -> None:
    transposed = None
    if stack.values_t is not None and stack.metadata_t is not None:
        transposed = _bytes(stack.values_t, stack.metadata_t)
    found = parts(logical, _bytes(stack.values, stack.metadata), transposed, packing.format, NARROW)
    kind = KINDS[stack.values.dtype]
    for number, (w, pattern, part) in enumerate(zip(logical, patterns, found, strict=True)):
        if packing.select == "transposable":
            _pack_both_ways(w, pattern, part, amax, descale, packing, kind)
        else:
            _pack_along(w.t(), pattern, part, amax, descale, betas[number] if betas else None, packing, kind)


def _bytes(values: Tensor, metadata: Tensor) -> Buffers:
    """As the kernels see them: bytes, and sixteen bits of metadata a chunk."""
    return Buffers(values.view(torch.uint8), metadata.view(torch.int16))


def _pack_both_ways(
    w: Tensor, patterns: Tensor, part: Part, amax: Tensor, descale: Tensor, packing: Packing, kind: str
) -> None:
    operand, transposed, split = part
    flipped = abs(w.stride(0)) < abs(w.stride(1))
    view, numbers = (w.t(), patterns.t()) if flipped else (w, patterns)
    along, across = (transposed, operand) if flipped else (operand, transposed)
    (rows, columns), tile = view.shape, tiles.BLOCKS
    outputs: list[Tensor | int] = []
    for packed in (along, across):
        given = packed or operand
        outputs += [given.values, given.values.stride(0), given.cells, given.cells.stride(0)]
    wide = whole_atoms(columns, tile.columns)
    launch(
        pack_blocks, whole_atoms(rows, tile.rows) * wide, tile, w.device,
        view, *view.stride(), rows, columns, amax, numbers, *numbers.stride(), pattern_table(w.device),
        *outputs, split, descale, wide,
        SEARCH=packing.search, FLIPPED=flipped, ALONG=along is not None, ACROSS=across is not None,
        EVEN=rows % ATOM == 0 and columns % ATOM == 0, FORMAT=packing.format, KIND=kind,
        BLOCK_R=tile.rows, BLOCK_C=tile.columns,
    )  # fmt: skip


def _pack_along(
    g: Tensor,
    patterns: Tensor,
    part: Part,
    amax: Tensor,
    descale: Tensor,
    beta: Tensor | None,
    packing: Packing,
    kind: str,
) -> None:
    """Packs g [k, m], a weight transposed, along k."""
    (k, m), (values, cells) = g.shape, part.operand
    along = abs(g.stride(0)) < abs(g.stride(1))
    tile = tiles.ROWS_ALONG if along else tiles.ROWS
    block_k, block_m = (tile.columns, tile.rows) if along else (tile.rows, tile.columns)
    rule = packing.select if packing.search or packing.select == "soft_threshold" else "given"
    launch(
        pack_rows, whole_atoms(k, block_k) * -(-m // block_m), tile, g.device,
        g, *g.stride(), k, m, amax, cells, amax if beta is None else beta, patterns,
        values, 0, values, values.stride(0), cells, cells.stride(0), part.split, descale, descale, amax,
        RULE=rule, FACTOR=beta is not None, ROWS=False, SUMS=False, ALONG=along,
        EVEN=k % ATOM == 0 and m % block_m == 0,
        FORMAT=packing.format, KIND=kind, BLOCK_K=block_k, BLOCK_M=block_m,
    )  # fmt: skip
