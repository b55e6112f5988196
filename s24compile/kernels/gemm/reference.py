"""The 2:4 GEMM: unpack, then torch's own matrix product; and products of eight-bit floats.

Legend: A [m, k] sparse (or dense, in `scaled_dense`), B [k, n] dense, C or D [m, n].

In `scaled_*` A and B stand for `descale_a` A and `descale_b` B, fp32 [1] each (scaling.py). Products of two eight-bit
floats are exact in fp32; their sum is multiplied by both, and then treated as that of any other GEMM. An `amax`, fp32
[1], is that of a result before it is rounded: what it will be quantised by. exact: kernels then add up in fp32
registers; else in those of the tensor cores, which keep fewer bits. Here both are fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.glu import reference as activations
from s24compile.kernels.pack.reference import unpack
from s24compile.kernels.packed import Packed24, ScaledPair
from s24compile.kernels.scaling import finite_amax


def mm(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """C = A B + bias; summed in fp32 (fp64 for fp64), rounded once.

    Args:
        b: [k, n], any strides.
        bias: [m], one value per row of C.
        out_layout: "row": C has strides (n, 1). "col": (1, m), the transpose of a row-major C^T.
    """
    wide = torch.float64 if torch.float64 in (a.dtype, b.dtype, out_dtype) else torch.float32
    dense, b = unpack(a).to(wide), b.to(wide)
    if out_layout == "row":
        c = torch.mm(dense, b) if bias is None else torch.addmm(bias.to(wide)[:, None], dense, b)
        return c.to(out_dtype)
    c = torch.mm(b.t(), dense.t()) if bias is None else torch.addmm(bias.to(wide), b.t(), dense.t())
    return c.to(out_dtype).t()


def mm_act(a: Packed24, b: Tensor, bias: Tensor | None, act: str, out_layout: str) -> tuple[Tensor, Tensor]:
    """(Z, H) = (A B + bias, act(A B + bias)); the activation sees the sum before it is rounded to Z."""
    z = mm(a, b, bias, out_layout, _wide(b))
    return z.to(b.dtype), activations.act(z, act).to(b.dtype)


def mm_dact(a: Packed24, b: Tensor, z: Tensor, act: str, out_layout: str) -> Tensor:
    """dZ = (A B) * act'(Z), the product rounded once."""
    return _rounded(_dact(a, b, z, act), out_layout, b.dtype)


def mm_dact_sum(a: Packed24, b: Tensor, z: Tensor, act: str, out_layout: str) -> tuple[Tensor, Tensor]:
    """`mm_dact`, and the sums of dZ over its columns before it is rounded (fp32; fp64 for fp64)."""
    dz = _dact(a, b, z, act)
    return _rounded(dz, out_layout, b.dtype), dz.sum(1)


def _dact(a: Packed24, b: Tensor, z: Tensor, act: str) -> Tensor:
    """dZ before it is rounded."""
    wide = _wide(b)
    return activations.act_backward(mm(a, b, None, "row", wide), z.to(wide), act)


def _rounded(x: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return x.contiguous() if layout == "row" else x.t().contiguous().t()


def mm_add(a: Packed24, b: Tensor, c: Tensor) -> Tensor:
    """D = A B + C in C's dtype, column-major, rounded once."""
    wide = _wide(c)
    product = mm(a, b, None, "col", wide)
    return (product.t() + c.t().to(wide)).to(c.dtype).contiguous().t()


def mm_glu(a: Packed24, b: Tensor, act: str, gate: str) -> tuple[Tensor, Tensor]:
    """(Z, H) = (A B, glu(A B)) with Z [2F, n] and H [F, n] column-major; GLU sees the sum before it is rounded to Z."""
    z = mm(a, b, None, "col", _wide(b))
    return z.to(b.dtype), activations.glu(z.t(), act, gate).to(b.dtype).t()


def mm_dglu(a: Packed24, b: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """dZ [2F, n], column-major, from dH = A B [F, n] and Z [2F, n]; rounded once."""
    wide = _wide(b)
    dh = mm(a, b, None, "col", wide)
    return activations.glu_backward(dh.t(), z.t().to(wide), act, gate).to(b.dtype).contiguous().t()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _scaled(pair: ScaledPair, dtype: torch.dtype) -> Tensor:
    """D before anything is added or rounded: fp32, or fp64 where the result is to be."""
    wide = torch.promote_types(dtype, torch.float32)
    return mm(pair.a, pair.b, None, "row", wide) * (pair.descale_a * pair.descale_b).to(wide)


def scaled_mm(pair: ScaledPair, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype, exact: bool) -> Tensor:
    """D = A B + bias[:, None]."""
    d = _scaled(pair, out_dtype)
    return _rounded(d if bias is None else d + bias.to(d.dtype)[:, None], out_layout, out_dtype)


def scaled_mm_act(
    pair: ScaledPair, bias: Tensor | None, act: str, out_layout: str, out_dtype: torch.dtype, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(Z, H, amax of H): Z = A B + bias, H = act(A B + bias)."""
    z = _scaled(pair, out_dtype)
    z = z if bias is None else z + bias.to(z.dtype)[:, None]
    h = activations.act(z, act)
    return _rounded(z, out_layout, out_dtype), _rounded(h, out_layout, out_dtype), finite_amax(h)


def scaled_mm_dact(
    pair: ScaledPair, z: Tensor, act: str, out_layout: str, sums: bool, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dZ, sums, amax of dZ): dZ = (A B) act'(Z) in Z's dtype; its fp32 sums over the columns where `sums`."""
    dh = _scaled(pair, z.dtype)
    dz = activations.act_backward(dh, z.to(dh.dtype), act)
    total = dz.sum(1) if sums else dz.new_empty((0,))
    return _rounded(dz, out_layout, z.dtype), total, finite_amax(dz)


def scaled_mm_add(pair: ScaledPair, c: Tensor, exact: bool) -> Tensor:
    """D = A B + C in C's dtype, column-major."""
    d = _scaled(pair, c.dtype)
    return _rounded(d + c.to(d.dtype), "col", c.dtype)


def scaled_mm_glu(
    pair: ScaledPair, act: str, gate: str, out_dtype: torch.dtype, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(Z [2F, n], H [F, n], amax of H), column-major: Z = A B, H = glu(A B)."""
    z = _scaled(pair, out_dtype)
    h = activations.glu(z.t(), act, gate).t()
    return _rounded(z, "col", out_dtype), _rounded(h, "col", out_dtype), finite_amax(h)


def scaled_mm_dglu(pair: ScaledPair, z: Tensor, act: str, gate: str, exact: bool) -> tuple[Tensor, Tensor]:
    """(dZ [2F, n], amax of dZ), column-major, in Z's dtype, from dH = A B [F, n] and Z [2F, n]."""
    dh = _scaled(pair, z.dtype)
    dz = activations.glu_backward(dh.t(), z.t().to(dh.dtype), act, gate).t()
    return _rounded(dz, "col", z.dtype), finite_amax(dz)


def scaled_dense(
    a: Tensor,
    descale_a: Tensor,
    b: Tensor,
    descale_b: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    exact: bool,
) -> Tensor:
    """D = A B + bias, row-major, of dense operands: what has no 2:4 operand in a layer that is trained in eight bits.

    Args:
        a: [m, k], row-major; b: [k, n], column-major, both with any pitch: torch._scaled_mm's operands.
        bias: [n].
    """
    wide = torch.promote_types(out_dtype, torch.float32)
    d = torch.mm(a.to(wide), b.to(wide)) * (descale_a * descale_b).to(wide)
    return (d if bias is None else d + bias.to(wide)).to(out_dtype)
