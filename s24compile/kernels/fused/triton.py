"""Triton kernels of the fused ops. Legend: T tokens, F hidden width."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.decay.triton import masked_decay_many_, supports_many
from s24compile.kernels.format import FORMATS
from s24compile.kernels.pack.triton import pack_along
from s24compile.kernels.pack.triton_many import pack_weights_, supports_weights
from s24compile.kernels.pack.triton_parts import Packed, planes
from s24compile.kernels.pack.triton_supports import supported, supports_gradient
from s24compile.kernels.providers import Provider


def _supports_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> str | None:
    return supports_gradient(g, dtype, format)


def mvue_pack_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """See fused/reference.py. Sums of tiles are added in a second, small pass: the result does not vary by run."""
    values, metadata = FORMATS[format].empty(g.shape[1], g.shape[0], dtype, g.device)
    operand = Packed(values, planes(metadata, format))
    sums = pack_along(g, "mvue", operand, format, seed=seed.to(g.device), sums=True)
    assert sums is not None
    return values, metadata, sums


PROVIDERS = {
    "mvue_pack_sum": Provider("triton", mvue_pack_sum, supported, _supports_sum),
    "pack_weights_": Provider("triton", pack_weights_, supported, supports_weights),
    "masked_decay_many_": Provider("triton", masked_decay_many_, supported, supports_many),
}
