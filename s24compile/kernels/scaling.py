"""The arithmetic of eight-bit floats, told once: what a tensor is multiplied by, how it is rounded, and back. A leaf.

One scale a tensor, from its amax, all in fp32::

    amax     the largest *finite* magnitude of the tensor, 0 where there is none
    scale    limit / (headroom amax), at most 2^126; 1 where amax is 0 or not finite
    q        x scale, saturated at +-limit, rounded to nearest even; NaN where x is Inf or NaN
    descale  1 / scale: q descale is x again, rounded

``limit`` is the largest finite number of the dtype: 448 of e4m3, 57344 of e5m2. Nothing wraps: a finite x never becomes
NaN or Inf, whatever amax is (it may be that of an earlier tensor). An Inf becomes NaN, which e4m3 alone would leave no
choice of, so that a step that overflowed is seen to have; it does not disturb the scale of the numbers around it.

``headroom`` is 2 for what MVUE makes of a tensor: it raises a value to at most half of its group's sum, twice the amax.

2^126: its inverse is the smallest normal number, so that neither factor is subnormal (kernels flush those to 0). So
tensors with an amax below some 1e-35 use less than the whole range.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMITS: dict[torch.dtype, float] = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
"""Largest finite number by dtype: what is taken for fp8 here."""
MVUE_HEADROOM = 2.0
LARGEST_SCALE = 2.0**126


def finite_amax(x: Tensor) -> Tensor:
    """The largest finite magnitude of a tensor of any shape: fp32 [1]."""
    size = x.detach().to(torch.float32).abs()
    finite = torch.where(size < torch.inf, size, 0.0)
    return finite.amax().reshape(1) if x.numel() else finite.new_zeros(1)


def scale_of(amax: Tensor, dtype: torch.dtype, headroom: float = 1.0) -> Tensor:
    """What a tensor of this amax (fp32, any shape) is multiplied by to fill the range of `dtype`."""
    usable = (amax > 0) & (amax < torch.inf)
    # A number over a tensor would be the tensor's inverse times the number: two roundings.
    scale = (torch.full_like(amax, LIMITS[dtype] / headroom) / amax).clamp(max=LARGEST_SCALE)
    return torch.where(usable, scale, 1.0)


def descale_of(scale: Tensor) -> Tensor:
    """What quantised values are multiplied by to be themselves again."""
    return 1.0 / scale


def quantised(x: Tensor, scale: Tensor | float, dtype: torch.dtype) -> Tensor:
    """x of any float dtype, times `scale`, in `dtype`."""
    wide = x.to(torch.float32)
    limit = LIMITS[dtype]
    # The second product is 0, and NaN where x is not finite: what the clamp would else make the largest number of.
    # A finite x whose product overflows is clamped.
    return (wide * scale).clamp(-limit, limit).add(wide * 0.0).to(dtype)
