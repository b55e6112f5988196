"""Packing a 2:4 matrix into values and metadata, and back. The bits are those of `format.py` and `metadata.py`.

Legend: w [m, k] with groups of four along k.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from s24compile.errors import MaskError, ShapeError
from s24compile.kernels.format import FORMATS, code_table
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.patterns import PAIR_CODES, PAIRS, TRANSPOSABLE, TRANSPOSABLE_COLUMNS


def _code_of_bits(bits: int) -> int:
    """Metadata code of the kept places of a group (bit c = place c), for any number of them.

    Two: their code. Fewer: the lowest free places fill up (their values are 0). More: the first and the last.
    """
    kept = [c for c in range(4) if bits >> c & 1]
    if len(kept) < 2:
        kept = sorted((kept + [c for c in range(4) if c not in kept])[:2])
    return PAIR_CODES[PAIRS.index((kept[0], kept[-1]))]


CODE_OF_BITS = tuple(_code_of_bits(bits) for bits in range(16))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds to `dtype`; fp8 and int8 saturate (int8 rounds to nearest even). No scale is applied."""
    if x.dtype == dtype:
        return x
    if dtype == torch.int8:
        return x.to(torch.float32).round().clamp(-128, 127).to(torch.int8)
    if dtype.itemsize == 1:
        limit = torch.finfo(dtype).max
        return x.to(torch.float32).clamp(-limit, limit).to(dtype)
    return x.to(dtype)


def places_of(codes: Tensor) -> Tensor:
    """The two kept places of each group, int64 [m, groups, 2] (torch's gather and scatter take no less)."""
    return torch.stack((codes & 3, codes >> 2), dim=-1).long()


def gather_kept(x: Tensor, codes: Tensor) -> Tensor:
    """The two elements of each group of x [m, 4 groups] that `codes` [m, groups] names: [m, 2 groups]."""
    return x.unflatten(1, (-1, 4)).gather(2, places_of(codes)).flatten(1)


def write(values: Tensor, codes: Tensor, k: int, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """Casts kept values [m, 2 groups] and stores them with their codes as an operand of `format`."""
    out, metadata = FORMATS[format].empty(values.shape[0], k, dtype, values.device)
    out.copy_(FORMATS[format].store_rows(cast(values, dtype)))
    return out, metadata.copy_(FORMATS[format].encode(codes, dtype))


def _pad(x: Tensor) -> Tensor:
    """Zero columns up to a multiple of 4."""
    rest = -x.shape[1] % 4
    return torch.nn.functional.pad(x, (0, rest)) if rest else x


def _check_kept(count: Tensor, what: str, accepted: str) -> None:
    """Raises MaskError if a group holds more than two ones. `count` is the largest number, 0-d."""
    if int(count) > 2:
        raise MaskError(what=what, found=f"a group of four holds {int(count)} non-zeros", accepted=accepted)


ROWS = "at most two ones in each group of four along the last dim"
COLUMNS = (
    "at most two ones in each group of four down the columns too, since the transpose is packed as well: take "
    "ops.transposable_mask, or pack(w, mask) where W^T is not needed"
)


def pack(
    w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str, accepted: str = ROWS
) -> tuple[Tensor, Tensor]:
    """Packs w * mask; with `mask=None`, w itself, whose groups then hold at most two non-zeros (NaN is one).

    A group with fewer than two ones keeps zeros at its lowest free places. On CUDA a mask with more than two ones
    in a group is not refused, which would need a host sync; the first and the last are kept.

    Args:
        w: [m, k], any strides; k is padded to a multiple of 4 with zeros.
        mask: bool [m, k].
        accepted: what a wrong mask is told.

    Returns:
        (values, metadata) as `Format.empty` lays them out.

    Raises:
        MaskError: more than two ones in a group (on CUDA only with `mask=None`).
    """
    k = w.shape[1]
    if w.dtype.itemsize == 1:
        w = w.to(torch.float32)  # torch has no arithmetic on fp8
    if mask is None:
        kept, w = _pad(w != 0), _pad(w)
    else:
        kept, w = _pad(mask), _pad(torch.where(mask, w, 0.0))
    k0, k1, k2, k3 = kept.to(torch.uint8).unflatten(1, (-1, 4)).unbind(-1)
    if kept.numel() and (mask is None or w.device.type != "cuda"):
        most = (k0 + k1 + k2 + k3).max()
        if mask is None:
            _check_kept(most, "the tensor", "pass a mask (ops.magnitude_mask, ops.transposable_mask) to prune it")
        else:
            _check_kept(most, "the mask", accepted)
    bits = k0 | k1 << 1 | k2 << 2 | k3 << 3
    codes = code_table(w.device, CODE_OF_BITS)[bits.int()]
    return write(gather_kept(w, codes), codes, k, dtype, format)


def unpack(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str) -> Tensor:
    """(values, metadata) -> dense [rows, cols], contiguous, in the dtype of the values."""
    codes = FORMATS[format].decode(metadata, rows, cols, values.dtype)
    # fp8 has no scatter: its bytes carry the same bits, and all bits 0 is 0.
    kept = FORMATS[format].load_rows(values.view(torch.uint8) if values.dtype.itemsize == 1 else values)
    dense = torch.zeros((*codes.shape, 4), dtype=kept.dtype, device=kept.device)
    dense.scatter_(2, places_of(codes), kept.unflatten(1, (-1, 2)))
    return dense.flatten(1)[:, :cols].contiguous().view(values.dtype)


def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Packs w * mask and its transpose: (values, metadata, values_t, metadata_t). The mask is transposable.

    The transpose is of the format `Format.transposed`.
    """
    return *pack(w, mask, dtype, format), *pack(w.t(), mask.t(), dtype, FORMATS[format].transposed, COLUMNS)


def _codes_of_patterns(patterns: Tensor, select: str, *, transposed: bool) -> Tensor:
    """Pattern numbers of one weight -> codes of its rows, or of its columns where `transposed`."""
    if select != "transposable":
        return code_table(patterns.device, PAIR_CODES)[patterns.int()]
    pairs = TRANSPOSABLE_COLUMNS if transposed else TRANSPOSABLE
    table = code_table(patterns.device, tuple(PAIR_CODES[p] for pattern in pairs for p in pattern)).reshape(90, 4)
    codes = table[patterns.int()]  # [n/4, k/4, 4]: the last dim runs down the block, or across it
    return codes.permute(1, 2, 0).flatten(0, 1) if transposed else codes.transpose(1, 2).flatten(0, 1)


def pack_weight_(
    weights: list[Tensor],
    patterns: list[Tensor],
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
    """Fills the static buffers of one operand from the weights stacked in it.

    Args:
        weights: parameters, each [n_i, k] ("out_in") or [k, n_i] ("in_out"); N = sum of n_i.
        patterns: one uint8 tensor per weight, logical orientation: [n_i/4, k/4] for "transposable", else
            [n_i, k/4]. Written where the search runs, read where it does not.
        values, metadata: of [N, k]; cast to the dtype of `values`.
        values_t, metadata_t: of [k, N] in the format `Format.transposed`, or None; only "transposable" weights are
            2:4 both ways.
        scale: 0-d, or one per weight; "soft_threshold" packs scale * S(w).
        select: "transposable", "magnitude" or "soft_threshold" (which always searches).
        search: choose the patterns again, from the weights as they are.
    """
    logical = [w.detach() if weight_layout == "out_in" else w.detach().t() for w in weights]
    if select == "soft_threshold" or search:
        find = masks.transposable_patterns if select == "transposable" else masks.magnitude_patterns
        for pattern, w in zip(patterns, logical, strict=True):
            pattern.copy_(find(w))
    if select == "soft_threshold":
        logical = [masks.soft_threshold(w) for w in logical]
        if scale is not None:
            logical = [beta.float() * w.float() for beta, w in zip(scale.expand(len(logical)), logical, strict=True)]
    layout = FORMATS[format]
    codes = [_codes_of_patterns(p, select, transposed=False) for p in patterns]
    kept = [gather_kept(w, c) for w, c in zip(logical, codes, strict=True)]
    values.copy_(layout.store_rows(cast(torch.cat(kept), values.dtype)))
    metadata.copy_(layout.encode(torch.cat(codes), values.dtype))
    if values_t is None or metadata_t is None:
        return
    if select != "transposable":
        raise ShapeError(what="values_t", shape=tuple(values_t.shape), accepted="only a transposable mask has a W^T")
    codes = [_codes_of_patterns(p, select, transposed=True) for p in patterns]
    kept = [gather_kept(w.t(), c) for w, c in zip(logical, codes, strict=True)]
    values_t.copy_(cast(torch.cat(kept, dim=1), values_t.dtype))
    metadata_t.copy_(FORMATS[layout.transposed].encode(torch.cat(codes, dim=1), values_t.dtype))


def each_operand(
    weights: Sequence[Tensor],
    counts: Sequence[int],
    patterns: Sequence[Tensor],
    values: Sequence[Tensor],
    metadata: Sequence[Tensor],
    values_t: Sequence[Tensor],
    metadata_t: Sequence[Tensor],
) -> Iterator[tuple[list[Tensor], list[Tensor], Tensor, Tensor, Tensor | None, Tensor | None]]:
    """The first six arguments of `pack_weight_` for each operand of a `pack_weights_`, see fused/reference.py."""
    start = 0
    for i, count in enumerate(counts):
        stop = start + count
        transposed = (values_t[i], metadata_t[i]) if values_t else (None, None)
        yield list(weights[start:stop]), list(patterns[start:stop]), values[i], metadata[i], *transposed
        start = stop
