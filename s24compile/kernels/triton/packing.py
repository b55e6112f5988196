"""Launches of the two kernels that pack: 4x4 blocks both ways, and groups along one dim.

Packing, mask search, and the MVUE are all of them, with different questions. Legend: w [n, k] a weight; g [k, m].
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS, code_table
from s24compile.kernels.patterns import PAIR_CODES, PAIRS, TRANSPOSABLE, TRANSPOSABLE_COLUMNS
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.blocks import pack_blocks
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.parts import Buffers
from s24compile.kernels.triton.rows import pack_rows


@functools.cache
def pattern_table(device: torch.device) -> Tensor:
    """int32 [6, 128] by pattern number, what `blocks.lines` reads, for rows and then for columns: the four
    codes (a nibble each), then the byte selectors of lines 0 and 1, and of lines 2 and 3 (16 bits each)."""
    words = []
    for patterns in (TRANSPOSABLE, TRANSPOSABLE_COLUMNS):
        words.append([sum(PAIR_CODES[pair] << 4 * line for line, pair in enumerate(p)) for p in patterns])
        words += [[_selector(p[i]) | _selector(p[i + 1]) << 16 for p in patterns] for i in (0, 2)]
    flat = [word - (1 << 32) if word >> 31 else word for row in words for word in row + row[:1] * (128 - len(row))]
    return code_table(device, tuple(flat), torch.int32)


def _selector(pair: int) -> int:
    """Which bytes of four 16-bit values a pair keeps, a nibble each."""
    i, j = PAIRS[pair]
    return 2 * i | (2 * i + 1) << 4 | 2 * j << 8 | (2 * j + 1) << 12


def pack_transposable(
    w: Tensor,
    patterns: Tensor,
    operand: Buffers | None,
    transposed: Buffers | None,
    mask: str,
    format: str,
    split: int,
) -> None:
    """Packs w [n, k] and w^T by a transposable mask.

    Args:
        operand: of `format`; transposed: of the format of its transpose; both may be left out, and then the format.
        split: see triton/store.py.
        mask: what `patterns` are: "search", pattern numbers [n/4, k/4] to find and to store; "numbers", to read;
            "bits", a mask [n, k] of one byte each, in which at most two of four are one.
    """
    flipped = abs(w.stride(0)) < abs(w.stride(1))
    view, view_patterns = (w.t(), patterns.t()) if flipped else (w, patterns)
    along, across = (transposed, operand) if flipped else (operand, transposed)
    of_along, of_across = formats_of_sides(format, flipped, operand is not None, transposed is not None)
    rows, columns = view.shape
    tile = tiles.BLOCKS_GIVEN
    if mask == "search":
        tile = tiles.BLOCKS_SEARCH_WIDE if w.dtype.itemsize > 2 else tiles.BLOCKS_SEARCH
    outputs: list[Tensor | int] = []
    for packed in (along, across):
        given = packed or along or across or Buffers(view, patterns)
        outputs += [given.values, given.values.stride(0), given.cells, given.cells.stride(0)]
    launch(
        pack_blocks, -(-rows // tile.rows) * -(-columns // tile.columns), tile, w.device,
        view, *view.stride(), rows, columns, view_patterns, *view_patterns.stride(), pattern_table(w.device),
        *outputs, split,
        MASK=mask, FLIPPED=flipped, ALONG=of_along, ACROSS=of_across,
        EVEN=rows % tile.rows == 0 and columns % tile.columns == 0, BLOCK_R=tile.rows, BLOCK_C=tile.columns,
    )  # fmt: skip


def formats_of_sides(format: str, flipped: bool, operand: bool, transposed: bool) -> tuple[str, str]:
    """(ALONG, ACROSS) of `pack_blocks` for an operand of `format` and its transpose, where they are wanted."""
    own, other = format if operand else "", FORMATS[format].transposed if transposed else ""
    return (other, own) if flipped else (own, other)


def pack_along(
    g: Tensor,
    rule: str,
    operand: Buffers,
    format: str,
    *,
    split: int = 0,
    patterns: Tensor | None = None,
    scale: Tensor | None = None,
    seed: Tensor | None = None,
    sums: bool = False,
) -> Tensor | None:
    """Packs g [k, m] along k into an operand [m, k]; returns fp32 sums of g over k, [m], if `sums`."""
    (values, metadata), (k, m) = operand, g.shape
    along = abs(g.stride(0)) < abs(g.stride(1))
    tile = tiles.ROWS_ALONG if along else tiles.ROWS_SUMS if sums else tiles.ROWS
    block_k, block_m = (tile.columns, tile.rows) if along else (tile.rows, tile.columns)
    steps = -(-k // block_k)
    partial = torch.empty((steps, m), dtype=torch.float32, device=g.device) if sums else None
    launch(
        pack_rows, steps * -(-m // block_m), tile, g.device, g, *g.stride(), k, m,
        values if seed is None else seed, values if scale is None else scale,
        metadata if patterns is None else patterns, values, values.stride(0), metadata, metadata.stride(0), split,
        values if partial is None else partial,
        RULE=rule, SCALED=scale is not None, SUMS=sums, ALONG=along, EVEN=k % block_k == 0 and m % block_m == 0,
        FORMAT=format, BLOCK_K=block_k, BLOCK_M=block_m,
    )  # fmt: skip
    return None if partial is None else partial.sum(0)
