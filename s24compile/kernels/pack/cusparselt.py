"""Packing into cuSPARSELt's own format: through its compressor, from a dense 2:4 matrix.

Legend: w [m, k] with groups of four along k; N, K logical rows and columns of stacked weights.

What is kept, and of what value, is decided by whichever kernel packs the "sm90" format: its result is made dense and
compressed. So masks, MVUE draws, patterns and scales are the same as everywhere; it costs two more passes over memory
beside a compressor that reaches 3% of the bandwidth (2.2 ms for 8192 x 8192 on an H100).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s24compile.errors import TargetError
from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.gemm import cusparselt as gemm
from s24compile.kernels.gemm.padding import dense_operand, round_up
from s24compile.kernels.providers import Provider

NAME = "cusparselt"
CHUNK = 4096
"""Columns of the identity that one product of `unpack` takes."""


def refuse(dtype: torch.dtype, format: str) -> str | None:
    """A sentence unless values of `dtype` are wanted in cuSPARSELt's format."""
    if format != NAME:
        return f"it writes the cusparselt format, not {format}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it packs bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    return None


def as_dense(op: str, m: int, k: int, *args: Any) -> Tensor:
    """Runs an op that packs [m, k] into "sm90" on the best kernel there is, and gives the matrix that it packed."""
    with providers.only(None):
        values, metadata = providers.run(op, *args, "sm90")
        return providers.run("unpack", values, metadata, m, k, "sm90")


def compress(w: Tensor) -> tuple[Tensor, Tensor]:
    """(values, metadata) of a dense 2:4 matrix."""
    values, metadata = FORMATS[NAME].empty(w.shape[0], w.shape[1], w.dtype, w.device)
    compress_into(values, w)
    return values, metadata


def compress_into(values: Tensor, w: Tensor) -> None:
    """Fills the buffer of a dense 2:4 [m, k] in place.

    Raises:
        TargetError: this version of the library needs a larger one.
    """
    if not w.numel():
        return
    m, k = (round_up(size, gemm.SPARSE) for size in w.shape)
    compressed = torch._cslt_compress(dense_operand(w.contiguous(), m, k))
    if compressed.numel() > values.numel():
        raise TargetError(
            what=f"cuSPARSELt's format for {tuple(w.shape)}",
            target=str(w.device),
            found=f"this version of it takes {compressed.numel()} elements, and {values.numel()} are set aside",
            accepted="install nvcc and CUTLASS's headers instead, and report this as a bug of OpaqueFormat",
        )
    values.view(-1)[: compressed.numel()].copy_(compressed.view(-1))


def pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See pack/reference.py."""
    return compress(as_dense("pack", w.shape[0], w.shape[1], w, mask, dtype))


def unpack(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str) -> Tensor:
    """See pack/reference.py: a product with the identity, the only way to read it. A row with Inf or NaN is NaN."""
    dense = values.new_empty((rows, cols))
    for start in range(0, cols, CHUNK):
        width = min(CHUNK, cols - start)
        columns = values.new_zeros((cols, width))
        columns.diagonal(-start).fill_(1.0)
        part = gemm.mm(values, metadata, rows, cols, format, columns, None, "row", values.dtype)
        dense[:, start : start + width].copy_(part)
    return dense


def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See pack/reference.py."""
    return *pack(w, mask, dtype, format), *pack(w.t(), mask.t(), dtype, format)


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
    """See pack/reference.py."""
    along = 1 if weight_layout == "out_in" else 0
    n, k = sum(w.shape[1 - along] for w in weights), weights[0].shape[along]
    plain = FORMATS["sm90"]
    packed = plain.empty(n, k, values.dtype, values.device)
    turned = None if values_t is None else plain.empty(k, n, values.dtype, values.device)
    options = (scale, select, search, "sm90", weight_layout)
    with providers.only(None):
        providers.run("pack_weight_", weights, patterns, *packed, *(turned or (None, None)), *options)
        compress_into(values, providers.run("unpack", *packed, n, k, "sm90"))
        if values_t is not None and turned is not None:
            compress_into(values_t, providers.run("unpack", *turned, k, n, "sm90"))


def _supports_pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> str | None:
    return refuse(dtype, format)


def _supports_unpack(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str) -> str | None:
    return refuse(values.dtype, format)


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
    return refuse(values.dtype, format)


PROVIDERS = {
    "pack": Provider(NAME, pack, gemm.supported, _supports_pack),
    "unpack": Provider(NAME, unpack, gemm.supported, _supports_unpack),
    "pack_both": Provider(NAME, pack_both, gemm.supported, _supports_pack),
    "pack_weight_": Provider(NAME, pack_weight_, gemm.supported, _supports_weight),
}
"""Op name to provider: what `kernels.providers.find` reads."""
