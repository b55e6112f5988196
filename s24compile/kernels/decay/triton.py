"""Triton kernels of masked decay. Legend: grad, w [m, n]; patterns as in decay/reference.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.decay.triton_kernels import decay_many, decay_one
from s24compile.kernels.format import code_table
from s24compile.kernels.patterns import PAIRS, TRANSPOSABLE
from s24compile.kernels.providers import Provider
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.batch import table
from s24compile.kernels.triton.launch import TRITON_DTYPES, launch
from s24compile.kernels.triton.supports import supports_reading


@functools.cache
def _mask_bits(device: torch.device) -> Tensor:
    """int32 [256] by pattern number (whatever a byte holds): bit 4 r + c where the pattern keeps (r, c)."""
    words = tuple(sum(1 << 4 * row + c for row, pair in enumerate(p) for c in PAIRS[pair]) for p in TRANSPOSABLE)
    return code_table(device, words + words[:1] * (256 - len(words)), torch.int32)


def _supports(grad: Tensor, w: Tensor, patterns: Tensor, kind: str, alpha: Tensor) -> str | None:
    return supports_reading(grad, w)


def _supports_many(
    grads: Sequence[Tensor], weights: Sequence[Tensor], patterns: Sequence[Tensor], kind: str, alpha: Tensor
) -> str | None:
    """As `masked_decay_patterns_`, for each weight."""
    return supports_reading(*grads, *weights)


def _view(w: Tensor) -> bool:
    """Whether the kernel should see the transpose, because that is what lies contiguous."""
    return abs(w.stride(0)) < abs(w.stride(1))


def masked_decay_patterns_(grad: Tensor, w: Tensor, patterns: Tensor, kind: str, alpha: Tensor) -> None:
    """See decay/reference.py."""
    w = w.detach()
    flipped = _view(grad)
    if flipped:
        grad, w, patterns = grad.t(), w.t(), patterns.t()
    rows, columns = grad.shape
    launch(
        decay_one, -(-rows // tiles.DECAY.rows) * -(-columns // tiles.DECAY.columns), tiles.DECAY, grad.device,
        grad, *grad.stride(), w, *w.stride(), patterns, *patterns.stride(), _mask_bits(grad.device),
        alpha.to(grad.device, torch.float32), rows, columns,
        ROWS=kind == "rows", FLIPPED=flipped, BLOCK_R=tiles.DECAY.rows, BLOCK_C=tiles.DECAY.columns,
    )  # fmt: skip


def _entry(grad: Tensor, w: Tensor, patterns: Tensor) -> tuple[tuple[object, ...], tuple[int, ...]] | None:
    """(what a launch shares, the words of one tensor), or None where only `decay_one` will do."""
    flipped = _view(grad)
    if flipped:
        grad, w, patterns = grad.t(), w.t(), patterns.t()
    pitch = patterns.stride(1) if flipped else patterns.stride(0)
    inner = patterns.stride(0) if flipped else patterns.stride(1)
    if not grad.stride(1) == w.stride(1) == inner == 1:
        return None
    if any(x % 8 for x in (grad.stride(0), w.stride(0), w.shape[1])) or (grad.data_ptr() | w.data_ptr()) % 16:
        return None
    rows, columns = grad.shape
    words = grad.data_ptr(), w.data_ptr(), patterns.data_ptr(), grad.stride(0), w.stride(0), pitch, rows, columns
    return (grad.device, grad.dtype, w.dtype, flipped), (*words, -(-columns // tiles.DECAY.columns))


def masked_decay_many_(
    grads: Sequence[Tensor], weights: Sequence[Tensor], patterns: Sequence[Tensor], kind: str, alpha: Tensor
) -> None:
    """See decay/reference.py. One launch for each kind of (dtypes, layout) among the weights."""
    launches: dict[tuple[object, ...], list[tuple[int, ...]]] = {}
    for grad, w, pattern in zip(grads, weights, patterns, strict=True):
        found = _entry(grad, w.detach(), pattern)
        if found is None:
            masked_decay_patterns_(grad, w, pattern, kind, alpha)
        else:
            launches.setdefault(found[0], []).append(found[1])
    for (device, grad_dtype, w_dtype, flipped), entries in launches.items():
        assert isinstance(device, torch.device)
        assert isinstance(grad_dtype, torch.dtype)
        assert isinstance(w_dtype, torch.dtype)
        counts = tuple(-(-words[6] // tiles.DECAY.rows) * words[8] for words in entries)
        address, owners, programs = table(device, tuple(entries), counts)
        launch(
            decay_many, programs, tiles.DECAY, device, address, owners, _mask_bits(device),
            alpha.to(device, torch.float32),
            GRAD=TRITON_DTYPES[grad_dtype], WEIGHT=TRITON_DTYPES[w_dtype], ROWS=kind == "rows", FLIPPED=flipped,
            BLOCK_R=tiles.DECAY.rows, BLOCK_C=tiles.DECAY.columns,
        )  # fmt: skip


PROVIDERS = {
    "masked_decay_patterns_": Provider("triton", masked_decay_patterns_, _supports),
    "masked_decay_many_": Provider("triton", masked_decay_many_, _supports_many),
}
