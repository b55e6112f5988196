"""Contracts of products of eight-bit floats; `gemm/reference.py` says what the arguments mean.

Legend: A packed [rows, cols], B [cols, n]; "col" results have strides (1, rows).
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.ops.contract import contract
from s24compile.kernels.packed import ScaledPair


def _empty(b: Tensor, rows: int, layout: str, dtype: torch.dtype) -> Tensor:
    n = b.shape[1]
    return b.new_empty((rows, n), dtype=dtype) if layout == "row" else b.new_empty((n, rows), dtype=dtype).t()


def _wide(b: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return b.new_empty((count,), dtype=torch.promote_types(dtype, torch.float32))


@contract()
def scaled_mm(pair: ScaledPair, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype, exact: bool) -> Tensor:
    """D [rows, n] = descale_a A descale_b B + bias[:, None]."""
    return _empty(pair.b, pair.a.shape[0], out_layout, out_dtype)


@contract()
def scaled_mm_act(
    pair: ScaledPair, bias: Tensor | None, act: str, out_layout: str, out_dtype: torch.dtype, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(Z, H, amax of H): Z = A B + bias[:, None], H = act(Z), from one GEMM."""
    rows, b = pair.a.shape[0], pair.b
    return _empty(b, rows, out_layout, out_dtype), _empty(b, rows, out_layout, out_dtype), _wide(b, 1)


@contract()
def scaled_mm_dact(
    pair: ScaledPair, z: Tensor, act: str, out_layout: str, sums: bool, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dZ, sums, amax of dZ): dZ = (A B) act'(Z), in Z's dtype; sums over its columns [rows], or an empty tensor."""
    rows, b = pair.a.shape[0], pair.b
    return _empty(b, rows, out_layout, z.dtype), _wide(b, rows if sums else 0, z.dtype), _wide(b, 1)


@contract()
def scaled_mm_add(pair: ScaledPair, c: Tensor, exact: bool) -> Tensor:
    """D = A B + C [rows, n], column-major, in C's dtype."""
    return _empty(pair.b, pair.a.shape[0], "col", c.dtype)


@contract()
def scaled_mm_glu(
    pair: ScaledPair, act: str, gate: str, out_dtype: torch.dtype, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(Z [2F, n], H [F, n], amax of H), rows = 2F, column-major: Z = A B, H = act(gate half) * other half."""
    rows, b = pair.a.shape[0], pair.b
    return _empty(b, rows, "col", out_dtype), _empty(b, rows // 2, "col", out_dtype), _wide(b, 1)


@contract()
def scaled_mm_dglu(pair: ScaledPair, z: Tensor, act: str, gate: str, exact: bool) -> tuple[Tensor, Tensor]:
    """(dZ [2F, n], amax of dZ), column-major, in Z's dtype, from dH = A B [rows = F, n] and Z [2F, n]."""
    return _empty(pair.b, 2 * pair.a.shape[0], "col", z.dtype), _wide(pair.b, 1)


@contract()
def scaled_dense(
    a: Tensor,
    descale_a: Tensor,
    b: Tensor,
    descale_b: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    exact: bool,
) -> Tensor:
    """D [m, n] = descale_a A descale_b B + bias [n], row-major; A [m, k] dense row-major, B [k, n] column-major."""
    return a.new_empty((a.shape[0], b.shape[1]), dtype=out_dtype)
