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
from s24compile.kernels.pack.triton_rows import pack_rows
from s24compile.kernels.patterns import PAIR_CODES, PAIRS, TRANSPOSABLE, TRANSPOSABLE_COLUMNS
from s24compile.kernels.providers import Provider
from s24compile.kernels.target import Target

_LOADED = (torch.float32, torch.bfloat16, torch.float16)
_PACKED = (torch.bfloat16, torch.float16)


def supported(target: Target) -> str | None:
    """Triton's CUDA backend, with the PTX of compute capability 8.0 and up."""
    if target.arch is None or target.arch < (8, 0):
        return f"needs CUDA compute capability 8.0 or higher, this is {target}"
    return None


def supports_operand(source: Tensor, dtype: torch.dtype, format: str) -> str | None:
    """Whether these kernels read `source` and write operands of `dtype` in `format`."""
    return supports_dtypes(source.dtype, dtype, format)


def supports_dtypes(source: torch.dtype, dtype: torch.dtype, format: str) -> str | None:
    """`supports_operand` of a tensor of dtype `source`."""
    if format != "sm90":
        return f"writes the sm90 format only, not {format}"
    if dtype not in _PACKED:
        return f"packs bf16 and fp16 only, not {dtype}"
    if source not in _LOADED:
        return f"reads fp32, bf16 and fp16 only, not {source}"
    return None


def unaligned_operand(values: Tensor) -> str | None:
    """Whether a buffer lacks the padding of `Format.empty`, which the kernels write too."""
    if values.stride(0) % 8 or values.stride(1) != 1:
        return f"packs into rows of whole 16 bytes, not into strides {values.stride()}"
    return None


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


def _supports_weight(
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
) -> str | None:
    for pattern in patterns:
        if select != "transposable" and not pattern.is_contiguous():
            return "takes contiguous pair numbers only"
    unaligned = unaligned_operand(values) or (values_t is not None and unaligned_operand(values_t))
    if unaligned:
        return unaligned
    if (
        scale is not None
        and scale.numel() > 1
        and not whole_atoms([w if weight_layout == "out_in" else w.t() for w in weights])
    ):
        return "takes one scale only for weights that share an atom of 64 rows"
    reasons = (supports_operand(w, values.dtype, format) for w in weights)
    return next((reason for reason in reasons if reason), None)


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
    if whole_atoms(logical):
        _pack_parts(logical, patterns, values, metadata, values_t, metadata_t, scale, select, search)
        return
    # Parts that meet within an atom of metadata are copied into one weight first.
    joined = torch.cat(list(patterns))
    _pack_parts([torch.cat(logical)], [joined], values, metadata, values_t, metadata_t, scale, select, search)
    for pattern, found in zip(patterns, joined.split([p.shape[0] for p in patterns]), strict=True):
        pattern.copy_(found)


def whole_atoms(logical: Sequence[Tensor]) -> bool:
    """Whether weights [n_i, k] can be stacked without sharing an atom of metadata."""
    return all(w.shape[0] % 64 == 0 for w in logical[:-1])


def regions(
    logical: Sequence[Tensor], values: Tensor, metadata: Tensor, values_t: Tensor | None, metadata_t: Tensor | None
) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]]:
    """The parts of an operand's buffers, and of its transpose's, that belong to each stacked weight [n_i, k]."""
    found, row = [], 0
    for w in logical:
        stop = row + w.shape[0]
        transposed = None
        if values_t is not None and metadata_t is not None:
            transposed = values_t[:, row // 2 : stop // 2], metadata_t[row // 64 : (stop + 63) // 64]
        found.append(((values[row:stop], metadata[:, row // 64 : (stop + 63) // 64]), transposed))
        row = stop
    return found


def _pack_parts(
    logical: Sequence[Tensor],
    patterns: Sequence[Tensor],
    values: Tensor,
    metadata: Tensor,
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    scale: Tensor | None,
    select: str,
    search: bool,
) -> None:
    parts = regions(logical, values, metadata, values_t, metadata_t)
    for number, (w, pattern, (operand, transposed)) in enumerate(zip(logical, patterns, parts, strict=True)):
        if select == "transposable":
            pack_transposable(w, pattern, operand, transposed, "search" if search else "numbers")
        else:
            beta = None if scale is None else scale.expand(len(logical))[number]
            rule = select if search or select == "soft_threshold" else "given"
            pack_along(w.t(), rule, *operand, patterns=pattern, scale=beta)


def pack_transposable(
    w: Tensor,
    patterns: Tensor,
    operand: tuple[Tensor, Tensor] | None,
    transposed: tuple[Tensor, Tensor] | None,
    mask: str,
) -> None:
    """Packs w [n, k] and w^T by a transposable mask.

    Args:
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
        given = packed or along or across or (view, patterns)
        outputs += [given[0], given[0].stride(0), given[1], given[1].stride(0)]
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
        MASK=mask,
        FLIPPED=flipped,
        ALONG=along is not None,
        ACROSS=across is not None,
        EVEN=rows % tile.rows == 0 and columns % tile.columns == 0,
        BLOCK_R=tile.rows,
        BLOCK_C=tile.columns,
    )


def pack_along(
    g: Tensor,
    rule: str,
    values: Tensor,
    metadata: Tensor,
    *,
    patterns: Tensor | None = None,
    scale: Tensor | None = None,
    seed: Tensor | None = None,
    sums: bool = False,
) -> Tensor | None:
    """Packs g [k, m] along k into an operand [m, k]; returns fp32 sums of g over k, [m], if `sums`."""
    k, m = g.shape
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
        values if partial is None else partial,
        RULE=rule,
        SCALED=scale is not None,
        SUMS=sums,
        ALONG=along,
        EVEN=k % block_k == 0 and m % block_m == 0,
        BLOCK_K=block_k,
        BLOCK_M=block_m,
    )
    return None if partial is None else partial.sum(0)


def _supports_mask(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> str | None:
    if mask is None:
        return "packs by a mask only: that a tensor is 2:4 as it is must be checked"
    if w.shape[0] % 4 or w.shape[1] % 4:
        return f"packs whole 4x4 blocks only, not {tuple(w.shape)}"
    return supports_operand(w, dtype, format)


def pack(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See pack/reference.py; a mask with more than two ones in a group is cut down to its first and last, unchecked."""
    operand = FORMATS[format].empty(w.shape[0], w.shape[1], dtype, w.device)
    pack_transposable(w.detach(), mask.view(torch.uint8), operand, None, "bits")
    return operand


def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See pack/reference.py; as `pack`, in one read."""
    n, k = w.shape
    operand = FORMATS[format].empty(n, k, dtype, w.device)
    transposed = FORMATS[format].empty(k, n, dtype, w.device)
    pack_transposable(w.detach(), mask.view(torch.uint8), operand, transposed, "bits")
    return *operand, *transposed


PROVIDERS = {
    "pack_weight_": Provider("triton", pack_weight_, supported, _supports_weight),
    "pack": Provider("triton", pack, supported, _supports_mask),
    "pack_both": Provider("triton", pack_both, supported, _supports_mask),
}
