"""Many weights into cuSPARSELt's own format: its compressor takes one matrix a call, so one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from s24compile.kernels.gemm import cusparselt as gemm
from s24compile.kernels.pack.cusparselt import NAME, pack_weight_, refuse
from s24compile.kernels.pack.reference import each_operand
from s24compile.kernels.providers import Provider


def pack_weights_(
    weights: Sequence[Tensor],
    counts: Sequence[int],
    patterns: Sequence[Tensor],
    values: Sequence[Tensor],
    metadata: Sequence[Tensor],
    values_t: Sequence[Tensor],
    metadata_t: Sequence[Tensor],
    select: str,
    search: bool,
    format: str,
    weight_layout: str,
) -> None:
    """See fused/reference.py."""
    for operand in each_operand(weights, counts, patterns, values, metadata, values_t, metadata_t):
        pack_weight_(*operand, None, select, search, format, weight_layout)


def _supports(
    weights: Sequence[Tensor],
    counts: Sequence[int],
    patterns: Sequence[Tensor],
    values: Sequence[Tensor],
    metadata: Sequence[Tensor],
    values_t: Sequence[Tensor],
    metadata_t: Sequence[Tensor],
    select: str,
    search: bool,
    format: str,
    weight_layout: str,
) -> str | None:
    return refuse(values[0].dtype, format)


PROVIDERS = {"pack_weights_": Provider(NAME, pack_weights_, gemm.supported, _supports)}
"""Op name to provider: what `kernels.providers.find` reads."""
