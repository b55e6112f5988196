"""MVUE into cuSPARSELt's own format: the draws of the other kernels, compressed (see cusparselt/compress.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.cusparselt.compress import as_dense, compress, refuse
from s24compile.kernels.cusparselt.product import NAME, supported
from s24compile.kernels.providers import Provider


def _supports(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> str | None:
    return refuse(dtype, format)


def mvue_pack(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See mvue/reference.py."""
    return compress(as_dense("mvue_pack", g.shape[1], g.shape[0], g, seed, dtype))


PROVIDERS = {"mvue_pack": Provider(NAME, mvue_pack, _supports, supported)}
"""Op name to provider: what `kernels.providers.find` reads."""
