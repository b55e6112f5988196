"""Packing a 2:4 matrix into values and metadata, and back. The bits are those of `format.py` and `metadata.py`.

Legend: w [m, k] with groups of four along k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.errors import MaskError, ShapeError
from s24compile.kernels.format import FORMATS, code_table
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.packed import Packed24
from s24compile.kernels.patterns import CODE_OF_BITS, PAIR_CODES, TRANSPOSABLE, TRANSPOSABLE_COLUMNS
from s24compile.kernels.rounding import cast
from s24compile.kernels.stacks import Packing, Stack, Stacks


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


def unpack(a: Packed24) -> Tensor:
    """The dense matrix, contiguous, in the dtype of the values."""
    form, (rows, cols) = FORMATS[a.format], a.shape
    codes = form.decode(a.metadata, rows, cols, a.dtype)
    # fp8 has no scatter: its bytes carry the same bits, and all bits 0 is 0.
    kept = form.load_rows(a.values.view(torch.uint8) if a.dtype.itemsize == 1 else a.values)
    dense = torch.zeros((*codes.shape, 4), dtype=kept.dtype, device=kept.device)
    dense.scatter_(2, places_of(codes), kept.unflatten(1, (-1, 2)))
    return dense.flatten(1)[:, :cols].contiguous().view(a.dtype)


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


def pack_weight_(stack: Stack, scale: Tensor | None, packing: Packing) -> None:
    """Fills the static buffers of one operand from the weights stacked in it.

    Patterns are written where the search runs, read where it does not.

    Args:
        scale: what kept values are multiplied by, in fp32: 0-d, or one per weight.
    """
    select, form, logical = packing.select, FORMATS[packing.format], packing.logical(stack.weights)
    values, values_t = stack.values, stack.values_t
    if select == "soft_threshold" or packing.search:
        find = masks.transposable_patterns if select == "transposable" else masks.magnitude_patterns
        for pattern, w in zip(stack.patterns, logical, strict=True):
            pattern.copy_(find(w))
    if select == "soft_threshold":
        logical = [masks.soft_threshold(w) for w in logical]
    if scale is not None:
        logical = [factor.float() * w.float() for factor, w in zip(scale.expand(len(logical)), logical, strict=True)]
    codes = [_codes_of_patterns(p, select, transposed=False) for p in stack.patterns]
    kept = [gather_kept(w, c) for w, c in zip(logical, codes, strict=True)]
    values.copy_(form.store_rows(cast(torch.cat(kept), values.dtype)))
    stack.metadata.copy_(form.encode(torch.cat(codes), values.dtype))
    if values_t is None or stack.metadata_t is None:
        return
    if select != "transposable":
        raise ShapeError(what="values_t", shape=tuple(values_t.shape), accepted="only a transposable mask has a W^T")
    codes = [_codes_of_patterns(p, select, transposed=True) for p in stack.patterns]
    kept = [gather_kept(w.t(), c) for w, c in zip(logical, codes, strict=True)]
    values_t.copy_(cast(torch.cat(kept, dim=1), values_t.dtype))
    stack.metadata_t.copy_(FORMATS[form.transposed].encode(torch.cat(codes, dim=1), values_t.dtype))


def pack_weights_(stacks: Stacks, packing: Packing) -> None:
    """`pack_weight_` of many operands."""
    for stack in stacks.each():
        pack_weight_(stack, None, packing)
