"""Triton kernels of packing: the static operands of weights, from one read of each weight.

Legend: N, K logical rows and columns of the stacked weights; W [n, k] one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS, code_table
from s24compile.kernels.pack import triton_tiles as tiles
from s24compile.kernels.pack.triton_blocks import pack_blocks
from s24compile.kernels.pack.triton_parts import Packed, parts, planes, separable
from s24compile.kernels.pack.triton_rows import pack_rows
from s24compile.kernels.pack.triton_supports import supported, supports_dtypes, supports_weight, uneven_halves
from s24compile.kernels.pack.triton_unpack import supports_unpack, unpack
from s24compile.kernels.patterns import PAIR_CODES, PAIRS, TRANSPOSABLE, TRANSPOSABLE_COLUMNS
from s24compile.kernels.providers import Provider


@functools.cache
def pattern_table(device: torch.device) -> Tensor:
    """int32 [6, 128] by pattern number, what `triton_blocks.lines` reads, for rows and then for columns: the four
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


def pack_weight_(
    weights: Sequence[Tensor],
    patterns: Sequence[Tensor],
    values: Tensor,
    metadata: Tensor,
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    scale: Tensor | None,
    select: str,
    search: bool,
    format: str,
    weight_layout: str,
) -> None:
    """See pack/reference.py. One launch a weight, which reads it once."""
    logical = [w.detach() if weight_layout == "out_in" else w.detach().t() for w in weights]
    operand = Packed(values, planes(metadata, format))
    transposed = None
    if values_t is not None and metadata_t is not None:
        transposed = Packed(values_t, planes(metadata_t, FORMATS[format].transposed))
    options = scale, select, search, format
    if separable(logical, format, transposed is not None):
        _pack_parts(logical, patterns, operand, transposed, *options)
        return
    # Parts that meet within an atom of metadata are copied into one weight first.
    joined = torch.cat(list(patterns))
    _pack_parts([torch.cat(logical)], [joined], operand, transposed, *options)
    for pattern, found in zip(patterns, joined.split([p.shape[0] for p in patterns]), strict=True):
        pattern.copy_(found)


def _pack_parts(
    logical: Sequence[Tensor],
    patterns: Sequence[Tensor],
    operand: Packed,
    transposed: Packed | None,
    scale: Tensor | None,
    select: str,
    search: bool,
    format: str,
) -> None:
    found = parts(logical, operand, transposed, format)
    for number, (w, pattern, part) in enumerate(zip(logical, patterns, found, strict=True)):
        if select == "transposable":
            mask = "search" if search else "numbers"
            pack_transposable(w, pattern, part.operand, part.transposed, mask, format, part.split)
        else:
            beta = None if scale is None else scale.expand(len(logical))[number]
            rule = select if search or select == "soft_threshold" else "given"
            pack_along(w.t(), rule, part.operand, format, split=part.split, patterns=pattern, scale=beta)


def pack_transposable(
    w: Tensor,
    patterns: Tensor,
    operand: Packed | None,
    transposed: Packed | None,
    mask: str,
    format: str,
    split: int,
) -> None:
    """Packs w [n, k] and w^T by a transposable mask.

    Args:
        operand: of `format`; transposed: of the format of its transpose. split: see triton_store.py.
        mask: what `patterns` are: "search", pattern numbers [n/4, k/4] to find and to store; "numbers", to read;
            "bits", a mask [n, k] of one byte each, in which at most two of four are one.
    """
    flipped = abs(w.stride(0)) < abs(w.stride(1))
    view, view_patterns = (w.t(), patterns.t()) if flipped else (w, patterns)
    along, across = (transposed, operand) if flipped else (operand, transposed)
    rows, columns = view.shape
    tile = tiles.BLOCKS_GIVEN
    if mask == "search":
        tile = tiles.BLOCKS_SEARCH_WIDE if w.dtype.itemsize > 2 else tiles.BLOCKS_SEARCH
    outputs: list[Tensor | int] = []
    for packed in (along, across):
        given = packed or along or across or Packed(view, patterns)
        outputs += [given.values, given.values.stride(0), given.cells, given.cells.stride(0)]
    tiles.launch(
        pack_blocks,
        -(-rows // tile.rows) * -(-columns // tile.columns),
        tile,
        w.device,
        view,
        view.stride(0),
        view.stride(1),
        rows,
        columns,
        view_patterns,
        view_patterns.stride(0),
        view_patterns.stride(1),
        pattern_table(w.device),
        *outputs,
        split,
        MASK=mask,
        FLIPPED=flipped,
        ALONG=along is not None,
        ACROSS=across is not None,
        EVEN=rows % tile.rows == 0 and columns % tile.columns == 0,
        FORMAT=format,
        BLOCK_R=tile.rows,
        BLOCK_C=tile.columns,
    )


def pack_along(
    g: Tensor,
    rule: str,
    operand: Packed,
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
    tiles.launch(
        pack_rows,
        steps * -(-m // block_m),
        tile,
        g.device,
        g,
        g.stride(0),
        g.stride(1),
        k,
        m,
        values if seed is None else seed,
        values if scale is None else scale,
        metadata if patterns is None else patterns,
        values,
        values.stride(0),
        metadata,
        metadata.stride(0),
        split,
        values if partial is None else partial,
        RULE=rule,
        SCALED=scale is not None,
        SUMS=sums,
        ALONG=along,
        EVEN=k % block_k == 0 and m % block_m == 0,
        FORMAT=format,
        BLOCK_K=block_k,
        BLOCK_M=block_m,
    )
    return None if partial is None else partial.sum(0)


def _supports_mask(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> str | None:
    if mask is None:
        return "packs by a mask only: that a tensor is 2:4 as it is must be checked"
    if w.shape[0] % 4 or w.shape[1] % 4:
        return f"packs whole 4x4 blocks only, not {tuple(w.shape)}"
    return supports_dtypes(w.dtype, dtype, format) or uneven_halves(w.shape[0], format)


def pack(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See pack/reference.py; a mask with more than two ones in a group is cut down to its first and last, unchecked."""
    n, k = w.shape
    values, metadata = FORMATS[format].empty(n, k, dtype, w.device)
    operand = Packed(values, planes(metadata, format))
    pack_transposable(w.detach(), mask.view(torch.uint8), operand, None, "bits", format, n // 2)
    return values, metadata


def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See pack/reference.py; as `pack`, in one read."""
    (n, k), across = w.shape, FORMATS[format].transposed
    values, metadata = FORMATS[format].empty(n, k, dtype, w.device)
    values_t, metadata_t = FORMATS[across].empty(k, n, dtype, w.device)
    operand, transposed = Packed(values, planes(metadata, format)), Packed(values_t, planes(metadata_t, across))
    pack_transposable(w.detach(), mask.view(torch.uint8), operand, transposed, "bits", format, n // 2)
    return values, metadata, values_t, metadata_t


PROVIDERS = {
    "pack_weight_": Provider("triton", pack_weight_, supported, supports_weight),
    "pack": Provider("triton", pack, supported, _supports_mask),
    "pack_both": Provider("triton", pack_both, supported, _supports_mask),
    "unpack": Provider("triton", unpack, supported, supports_unpack),
}
