"""Triton kernels of packing: matrices by a mask, and the static operands of weights, from one read of each."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.pack.triton_many import pack_weights_, supports_weights
from s24compile.kernels.pack.triton_unpack import supports_unpack, unpack
from s24compile.kernels.pack.triton_weight import pack_weight_, supports_weight
from s24compile.kernels.providers import Provider
from s24compile.kernels.triton.packing import pack_transposable
from s24compile.kernels.triton.parts import Buffers
from s24compile.kernels.triton.supports import supports_dtypes, uneven_halves


def _supports_pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> str | None:
    if mask is None:
        return "packs by a mask only: that a tensor is 2:4 as it is must be checked"
    return _supports_both(w, mask, dtype, format)


def _supports_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> str | None:
    if w.shape[0] % 4 or w.shape[1] % 4:
        return f"packs whole 4x4 blocks only, not {tuple(w.shape)}"
    return supports_dtypes(w.dtype, dtype, format) or uneven_halves(w.shape[0], format)


def pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See pack/reference.py; a mask with more than two ones in a group is cut down to its first and last, unchecked."""
    assert mask is not None  # `_supports_pack`
    n, k = w.shape
    values, metadata = FORMATS[format].empty(n, k, dtype, w.device)
    operand = Buffers.of(values, metadata, format)
    pack_transposable(w.detach(), mask.view(torch.uint8), operand, None, "bits", format, n // 2)
    return values, metadata


def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See pack/reference.py; as `pack`, in one read."""
    (n, k), across = w.shape, FORMATS[format].transposed
    values, metadata = FORMATS[format].empty(n, k, dtype, w.device)
    values_t, metadata_t = FORMATS[across].empty(k, n, dtype, w.device)
    operand, transposed = Buffers.of(values, metadata, format), Buffers.of(values_t, metadata_t, across)
    pack_transposable(w.detach(), mask.view(torch.uint8), operand, transposed, "bits", format, n // 2)
    return values, metadata, values_t, metadata_t


PROVIDERS = {
    "pack_weight_": Provider("triton", pack_weight_, supports_weight),
    "pack_weights_": Provider("triton", pack_weights_, supports_weights),
    "pack": Provider("triton", pack, _supports_pack),
    "pack_both": Provider("triton", pack_both, _supports_both),
    "unpack": Provider("triton", unpack, supports_unpack),
}
