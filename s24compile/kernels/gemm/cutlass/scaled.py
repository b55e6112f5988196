"""The provider "cutlass" of products of eight-bit floats: which calls it takes, and what it hands the kernels.

wgmma reads 8-bit operands along K only, so B must be column-major: the transpose of a row-major [n, k]. A call with
another B is refused instead of copied: whoever quantises can write either orientation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.activations import activation
from s24compile.kernels.gemm.cutlass import gated, launch, tuned
from s24compile.kernels.gemm.cutlass.instantiations import FUNCTIONS
from s24compile.kernels.gemm.cutlass.layouts import empty
from s24compile.kernels.gemm.cutlass.plan import Scales
from s24compile.kernels.gemm.cutlass.provider import supported
from s24compile.kernels.gemm.dtypes import short
from s24compile.kernels.packed import ScaledPair
from s24compile.kernels.providers import Provider

_OUTPUTS = (torch.bfloat16, torch.float16, torch.float32)
_E4M3, _E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
_PAIRS = ((_E4M3, _E4M3), (_E4M3, _E5M2), (_E5M2, _E4M3))
Choice = tuned.Choice | None
"""Overrides the tuned table."""


def _refuse(pair: ScaledPair, out_dtype: torch.dtype, format: str = "sm90") -> str | None:
    """What all of them ask of their operands."""
    a, b = pair.a, pair.b
    if a.format != format:
        return f"it reads the {format} format, not {a.format}"
    if (a.dtype, b.dtype) not in _PAIRS:
        pairs = ", ".join(f"{short(one)} by {short(other)}" for one, other in _PAIRS)
        return f"it multiplies {pairs}, not {short(a.dtype)} by {short(b.dtype)}"
    if b.stride(0) != 1 and b.shape[0] > 1 and b.shape[1] > 0:
        return "it reads eight-bit operands along the contraction dim only, and B is not column-major"
    if out_dtype not in _OUTPUTS:
        return f"it writes bf16, fp16 and fp32, not {short(out_dtype)}"
    return None


def _refuse_activation(act: str, out_dtype: torch.dtype) -> str | None:
    if act not in FUNCTIONS:
        return f"it fuses {', '.join(FUNCTIONS)}, not {act}"
    return "it fuses activations into bf16 and fp16 results only" if out_dtype == torch.float32 else None


def supports(pair: ScaledPair, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype, exact: bool) -> str | None:
    """Any shape; a bias in bf16, fp16 or fp32. Interleaved halves are put in order by GLU's epilogue."""
    if bias is not None and bias.dtype not in _OUTPUTS:
        return f"it takes a bias in bf16, fp16 or fp32, not {short(bias.dtype)}"
    gated = pair.a.format == "sm90_gated" and bias is None and out_layout == "col" and out_dtype != torch.float32
    return _refuse(pair, out_dtype, "sm90_gated" if gated else "sm90")


def scaled_mm(
    pair: ScaledPair,
    bias: Tensor | None,
    out_layout: str,
    out_dtype: torch.dtype,
    exact: bool,
    choice: Choice = None,
) -> Tensor:
    """`s24::scaled_mm` on the CUTLASS kernels."""
    if pair.a.format == "sm90_gated":
        return scaled_mm_glu(pair, "relu", "first", out_dtype, exact, choice)[0]
    m, n, _ = pair.shape
    if 0 in pair.shape:
        d = empty(m, n, out_layout, out_dtype, pair.b.device).zero_()
        return d if bias is None else d.add_(bias[:, None])
    epilogue, scales = "plain" if bias is None else "bias", Scales(pair.descale_a, pair.descale_b, exact)
    return launch.run(
        pair.a, pair.b, epilogue, "", bias, None, out_layout, out_dtype, choice=choice, scales=scales
    )[0]  # fmt: skip


def supports_act(
    pair: ScaledPair, bias: Tensor | None, act: str, out_layout: str, out_dtype: torch.dtype, exact: bool
) -> str | None:
    """As `supports`, 16-bit results of plain rows, and the epilogue must know the activation."""
    if pair.a.format != "sm90":
        return f"it reads the sm90 format, not {pair.a.format}"
    return _refuse_activation(act, out_dtype) or supports(pair, bias, out_layout, out_dtype, exact)


def scaled_mm_act(
    pair: ScaledPair,
    bias: Tensor | None,
    act: str,
    out_layout: str,
    out_dtype: torch.dtype,
    exact: bool,
    choice: Choice = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`s24::scaled_mm_act` on the CUTLASS kernels."""
    amax = _zeros(pair, 1)
    if 0 in pair.shape:
        z = scaled_mm(pair, bias, out_layout, out_dtype, exact)
        h = activation(act).value(z)
        return z, h, h.abs().amax().float().reshape(1) if h.numel() else amax
    scales = Scales(pair.descale_a, pair.descale_b, exact, amax)
    h, beside = launch.run(
        pair.a, pair.b, "act", act, bias, None, out_layout, out_dtype, choice=choice, scales=scales
    )  # fmt: skip
    assert beside is not None
    return beside, h, amax


def supports_dact(pair: ScaledPair, z: Tensor, act: str, out_layout: str, sums: bool, exact: bool) -> str | None:
    """As `supports_act`."""
    return supports_act(pair, None, act, out_layout, z.dtype, exact)


def scaled_mm_dact(
    pair: ScaledPair, z: Tensor, act: str, out_layout: str, sums: bool, exact: bool, choice: Choice = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`s24::scaled_mm_dact` on the CUTLASS kernels; tiles' sums are added up here, always in the same order."""
    m, n, _ = pair.shape
    amax, total = _zeros(pair, 1), _zeros(pair, m if sums else 0)
    if 0 in pair.shape:
        return empty(m, n, out_layout, z.dtype, pair.b.device).zero_(), total, amax
    epilogue, scales = "dact_sum" if sums else "dact", Scales(pair.descale_a, pair.descale_b, exact, amax)
    dz, partial = launch.run(
        pair.a, pair.b, epilogue, act, None, z, out_layout, z.dtype, choice=choice, scales=scales
    )  # fmt: skip
    return dz, total if partial is None else partial[:, :m].sum(0), amax


def supports_add(pair: ScaledPair, c: Tensor, exact: bool) -> str | None:
    """As `supports`; D is in C's dtype."""
    return _refuse(pair, c.dtype)


def scaled_mm_add(pair: ScaledPair, c: Tensor, exact: bool, choice: Choice = None) -> Tensor:
    """`s24::scaled_mm_add` on the CUTLASS kernels."""
    m, n, _ = pair.shape
    if 0 in pair.shape:
        return empty(m, n, "col", c.dtype, pair.b.device).copy_(c)
    scales = Scales(pair.descale_a, pair.descale_b, exact)
    return launch.run(pair.a, pair.b, "add", "", None, c, "col", c.dtype, 1.0, choice, scales)[0]


def supports_glu(pair: ScaledPair, act: str, gate: str, out_dtype: torch.dtype, exact: bool) -> str | None:
    """The weight's halves interleaved, F a multiple of 8, 16-bit results."""
    rows = pair.a.shape[0]
    if rows % 16:
        return f"it interleaves halves by 8 rows, and {rows} is no multiple of 16"
    return _refuse_activation(act, out_dtype) or _refuse(pair, out_dtype, "sm90_gated")


def scaled_mm_glu(
    pair: ScaledPair, act: str, gate: str, out_dtype: torch.dtype, exact: bool, choice: Choice = None
) -> tuple[Tensor, Tensor, Tensor]:
    """`s24::scaled_mm_glu` on the CUTLASS kernels."""
    scales = Scales(pair.descale_a, pair.descale_b, exact, amax := _zeros(pair, 1))
    return *gated.mm_glu(pair.a, pair.b, act, gate, choice, out_dtype, scales), amax


def supports_dglu(pair: ScaledPair, z: Tensor, act: str, gate: str, exact: bool) -> str | None:
    """As `supports_dact`; TMA asks for halves that begin on 16 bytes."""
    rows = pair.a.shape[0]
    if rows % 8:
        return f"the halves of dZ begin on 16 bytes, and F = {rows} is no multiple of 8"
    return supports_act(pair, None, act, "col", z.dtype, exact)


def scaled_mm_dglu(
    pair: ScaledPair, z: Tensor, act: str, gate: str, exact: bool, choice: Choice = None
) -> tuple[Tensor, Tensor]:
    """`s24::scaled_mm_dglu` on the CUTLASS kernels."""
    scales = Scales(pair.descale_a, pair.descale_b, exact, amax := _zeros(pair, 1))
    return gated.mm_dglu(pair.a, pair.b, z, act, gate, choice, scales), amax


def _zeros(pair: ScaledPair, count: int) -> Tensor:
    """What kernels raise from 0, or what nothing is added to."""
    return pair.b.new_zeros(count, dtype=torch.float32)


PROVIDERS = {
    "scaled_mm": Provider("cutlass", scaled_mm, supports, supported),
    "scaled_mm_act": Provider("cutlass", scaled_mm_act, supports_act, supported),
    "scaled_mm_dact": Provider("cutlass", scaled_mm_dact, supports_dact, supported),
    "scaled_mm_add": Provider("cutlass", scaled_mm_add, supports_add, supported),
    "scaled_mm_glu": Provider("cutlass", scaled_mm_glu, supports_glu, supported),
    "scaled_mm_dglu": Provider("cutlass", scaled_mm_dglu, supports_dglu, supported),
}
"""For products of eight-bit floats."""
