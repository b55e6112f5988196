"""Triton kernels of MVUE: g^T sampled and packed from one read of g, in either layout.

Legend: g [T, F], T tokens, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.providers import Provider
from s24compile.kernels.triton.packing import pack_along
from s24compile.kernels.triton.parts import Buffers
from s24compile.kernels.triton.supports import supports_gradient


def _supports(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> str | None:
    return supports_gradient(g, dtype, format)


def mvue_pack(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See mvue/reference.py."""
    values, metadata = FORMATS[format].empty_whole(g.shape[1], g.shape[0], dtype, g.device)
    pack_along(g, "mvue", Buffers.of(values, metadata, format), format, seed=seed.to(g.device))
    return values, metadata


def mvue_pack_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """See mvue/reference.py. Sums of tiles are added in a second, small pass: the result does not vary by run."""
    values, metadata = FORMATS[format].empty_whole(g.shape[1], g.shape[0], dtype, g.device)
    operand = Buffers.of(values, metadata, format)
    sums = pack_along(g, "mvue", operand, format, seed=seed.to(g.device), sums=True)
    assert sums is not None
    return values, metadata, sums


PROVIDERS = {
    "mvue_pack": Provider("triton", mvue_pack, _supports),
    "mvue_pack_sum": Provider("triton", mvue_pack_sum, _supports),
}
