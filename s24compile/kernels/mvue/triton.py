"""Triton kernels of MVUE: g^T sampled and packed from one read of g, in either layout.

Legend: g [T, F], T tokens, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.pack.triton import pack_along
from s24compile.kernels.pack.triton_parts import Packed, planes
from s24compile.kernels.pack.triton_supports import supported, supports_gradient
from s24compile.kernels.providers import Provider


def _supports(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> str | None:
    return supports_gradient(g, dtype, format)


def mvue_pack(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See mvue/reference.py."""
    values, metadata = FORMATS[format].empty(g.shape[1], g.shape[0], dtype, g.device)
    pack_along(g, "mvue", Packed(values, planes(metadata, format)), format, seed=seed.to(g.device))
    return values, metadata


PROVIDERS = {"mvue_pack": Provider("triton", mvue_pack, supported, _supports)}
