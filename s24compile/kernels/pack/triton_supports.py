"""What the Triton kernels of packing take. Refusals are sentences; None means yes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.pack.triton_parts import separable
from s24compile.kernels.target import Target

_LOADED = (torch.float32, torch.bfloat16, torch.float16)
_PACKED = (torch.bfloat16, torch.float16)
_WRITTEN = ("sm90", "sm90_gated", "sm80")


def supported(target: Target) -> str | None:
    """Triton's CUDA backend, with the PTX of compute capability 8.0 and up."""
    if target.arch is None or target.arch < (8, 0):
        return f"needs CUDA compute capability 8.0 or higher, this is {target}"
    return None


def supports_dtypes(source: torch.dtype, dtype: torch.dtype, format: str) -> str | None:
    """Whether these kernels read tensors of dtype `source` and write operands of `dtype` in `format`."""
    if format not in _WRITTEN:
        return f"writes the formats {', '.join(_WRITTEN)} only, not {format}"
    if dtype not in _PACKED:
        return f"packs bf16 and fp16 only, not {dtype}"
    if source not in _LOADED:
        return f"reads fp32, bf16 and fp16 only, not {source}"
    return None


def supports_gradient(g: Tensor, dtype: torch.dtype, format: str) -> str | None:
    """Whether the estimate of g can be packed: as `supports_dtypes`; no gradient is stored interleaved."""
    if FORMATS[format].interleaved:
        return f"packs gradients in formats of plain rows only, not {format}"
    return supports_dtypes(g.dtype, dtype, format)


def uneven_halves(rows: int, format: str) -> str | None:
    """Whether an operand of so many rows has no halves that the format can interleave."""
    if FORMATS[format].interleaved and rows % 16:
        return f"interleaves halves of a multiple of 8 rows only, not {rows} rows"
    return None


def unaligned_operand(values: Tensor) -> str | None:
    """Whether a buffer lacks the padding of `Format.empty`, which the kernels write too, or its pairs of values lie
    across words."""
    if values.stride(0) % 8 or values.stride(1) != 1:
        return f"packs into rows of whole 16 bytes, not into strides {values.stride()}"
    if values.storage_offset() % 2:
        return "takes kept values two at a time only, not from an odd storage offset"
    return None


def supports_weight(
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
    """Whether `pack_weight_` takes the call."""
    for pattern in patterns:
        if select != "transposable" and not pattern.is_contiguous():
            return "takes contiguous pair numbers only"
    unaligned = unaligned_operand(values) or (values_t is not None and unaligned_operand(values_t))
    if unaligned:
        return unaligned
    if scale is not None and scale.numel() > 1:
        logical = [w if weight_layout == "out_in" else w.t() for w in weights]
        if not separable(logical, format, values_t is not None):
            return "takes one scale only for weights that share an atom of 64 rows"
    reasons = (supports_dtypes(w.dtype, values.dtype, format) for w in weights)
    return next((reason for reason in reasons if reason), uneven_halves(values.shape[0], format))
