"""The 2:4 GEMM: unpack, then torch's own matrix product.

Legend: A [m, k] sparse, B [k, n] dense, C [m, n].
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.glu import reference as activations
from s24compile.kernels.pack.reference import unpack
from s24compile.kernels.packed import Packed24


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
