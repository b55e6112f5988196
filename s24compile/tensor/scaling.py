"""One scale per tensor for 8-bit values, so that a tensor of any range fills the range of its narrow dtype.

dense = kept * scale. Legend: kept any shape.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.rounding import cast


def limit_of(dtype: torch.dtype) -> float:
    """The largest magnitude of an 8-bit dtype (127 for int8, so that it is symmetric)."""
    return 127.0 if dtype == torch.int8 else torch.finfo(dtype).max


def scale_for(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The 0-d fp32 scale with which ``x / scale`` fills the range of `dtype`; no host sync.

    int8: amax / 127. fp8: the smallest power of two that keeps amax in range: relative precision is the same for any
    scale, and with this one every value is the plain cast of x, to the bit, wherever that neither over- nor
    underflows. 1 where x is all zero, holds Inf or NaN, or where the scale itself would leave fp32's normal range.
    """
    if not x.numel():
        return torch.ones((), dtype=torch.float32, device=x.device)
    ratio = limit_of(dtype) / x.detach().abs().amax().to(torch.float32)
    if dtype != torch.int8:
        ratio = ratio / (2.0 * torch.frexp(ratio).mantissa)  # m 2^e with m in [1/2, 1): exactly 2^(e - 1)
    scale = 1.0 / ratio
    usable = torch.isfinite(scale) & torch.isfinite(ratio) & (scale >= torch.finfo(torch.float32).tiny)
    return torch.where(usable, scale, torch.ones_like(scale))


def divided(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale in fp32: what is then cast to 8 bits."""
    return x.to(torch.float32) / scale


def dequantised(kept: Tensor, scale: Tensor | None) -> Tensor:
    """The values that narrow kept ones stand for: fp32 for 8-bit values, else as they are."""
    if scale is not None:
        return kept.to(torch.float32) * scale
    return kept.to(torch.float32) if kept.dtype.itemsize == 1 else kept


def recast(kept: Tensor, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Kept values and their scale in another dtype: 8-bit ones get a new scale, wider ones need none."""
    wide = dequantised(kept, scale)
    if dtype.itemsize > 1:
        return cast(wide, dtype), None
    new = scale_for(wide, dtype)
    return cast(divided(wide, new), dtype), new
