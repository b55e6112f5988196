"""What the Triton kernels take. Refusals are sentences; None means yes."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.activations import ACTIVATIONS
from s24compile.kernels.format import FORMATS

_LOADED = (torch.float32, torch.bfloat16, torch.float16)
_PACKED = (torch.bfloat16, torch.float16)
_WRITTEN = ("sm90", "sm90_gated", "sm80")


def supports_reading(*tensors: Tensor) -> str | None:
    """Whether these kernels read tensors of their dtypes."""
    return next((f"reads fp32, bf16 and fp16 only, not {x.dtype}" for x in tensors if x.dtype not in _LOADED), None)


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


def supports_act(act: str) -> str | None:
    """Why an activation is not computed, or None if it is."""
    known = [row.name for row in ACTIVATIONS.values() if row.triton]
    return None if act in known else f"computes {', '.join(known)} only, not {act}"
