"""The provider "cublas" of `s24::scaled_dense`: torch._scaled_mm, cuBLASLt's eight-bit product.

cuBLASLt takes k and n in multiples of 16 (any m), addresses (of scales, too) and pitches of whole 16 bytes, a bias in
16 bits, and no e5m2 by e5m2. What does not fit is padded with zeros, or copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.gemm.dtypes import short
from s24compile.kernels.padding import ALIGNMENT, round_up
from s24compile.kernels.providers import Provider
from s24compile.torch_internals.products import scaled_mm

UNIT = 16
"""What k and n must be multiples of, and pitches in elements."""


def supports(
    a: Tensor,
    descale_a: Tensor,
    b: Tensor,
    descale_b: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    exact: bool,
) -> str | None:
    """A row-major and B column-major, not both in e5m2; a result in bf16, fp16 or fp32."""
    if a.dtype == b.dtype == torch.float8_e5m2:
        return "cuBLASLt does not multiply e5m2 by e5m2"
    if out_dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"it writes bf16, fp16 and fp32, not {short(out_dtype)}"
    if a.numel() and a.stride(1) != 1 and a.shape[1] > 1:
        return "it reads eight-bit operands along the contraction dim only, and A is not row-major"
    if b.numel() and b.stride(0) != 1 and b.shape[0] > 1:
        return "it reads eight-bit operands along the contraction dim only, and B is not column-major"
    return None


def scaled_dense(
    a: Tensor,
    descale_a: Tensor,
    b: Tensor,
    descale_b: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    exact: bool,
) -> Tensor:
    """`s24::scaled_dense` on torch._scaled_mm."""
    (m, k), n = a.shape, b.shape[1]
    if min(m, k, n) == 0:
        d = a.new_zeros((m, n), dtype=out_dtype)
        return d if bias is None else d + bias.to(out_dtype)
    whole_k, whole_n = round_up(k, UNIT), round_up(n, UNIT)
    fitting_a, fitting_b = _padded(a, m, whole_k), _padded(b.t(), whole_n, whole_k).t()
    # cuBLASLt's bias is 16 bits wide, and only beside 16-bit results; another one is added afterwards.
    fused = bias is not None and bias.dtype == out_dtype != torch.float32 and n == whole_n
    d = scaled_mm(
        fitting_a, fitting_b, _aligned(descale_a), _aligned(descale_b),
        bias=bias if fused else None, out_dtype=out_dtype, use_fast_accum=not exact,
    )  # fmt: skip
    if n != whole_n:
        d = d[:, :n].contiguous()
    return d if bias is None or fused else d.add_(bias)


def _padded(x: Tensor, rows: int, cols: int) -> Tensor:
    """x with zeros up to [rows, cols], its rows on 16 bytes; x itself where it is that."""
    if x.shape == (rows, cols) and x.stride(0) % UNIT == 0 and x.data_ptr() % ALIGNMENT == 0:
        return x
    padded = x.new_zeros((rows, cols))
    padded[: x.shape[0], : x.shape[1]].copy_(x)
    return padded


def _aligned(scale: Tensor) -> Tensor:
    """The scale itself, or a copy of it where it is one number of a tensor of several."""
    return scale.clone() if scale.data_ptr() % ALIGNMENT else scale


PROVIDERS = {"scaled_dense": Provider("cublas", scaled_dense, supports)}
"""Op name to provider: what `kernels.providers.find` reads."""
