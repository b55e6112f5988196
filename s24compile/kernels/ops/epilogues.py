"""Contracts of GEMMs with an activation in their epilogue; only lowering makes them.

Legend: A packed [rows, cols], B [cols, n]; "col" results have strides (1, rows).
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.ops.contract import contract
from s24compile.kernels.packed import Packed24


def _empty(b: Tensor, rows: int, layout: str) -> Tensor:
    n = b.shape[1]
    return b.new_empty((rows, n)) if layout == "row" else b.new_empty((n, rows)).t()


@contract()
def mm_act(a: Packed24, b: Tensor, bias: Tensor | None, act: str, out_layout: str) -> tuple[Tensor, Tensor]:
    """(Z, H): Z = A B + bias[:, None] and H = act(Z), both in B's dtype, from one GEMM."""
    return _empty(b, a.shape[0], out_layout), _empty(b, a.shape[0], out_layout)


@contract()
def mm_dact(a: Packed24, b: Tensor, z: Tensor, act: str, out_layout: str) -> Tensor:
    """dZ = (A B) * act'(Z), in B's dtype: the backward of `mm_act`. Z [rows, n] in the layout of the result."""
    return _empty(b, a.shape[0], out_layout)


@contract()
def mm_dact_sum(a: Packed24, b: Tensor, z: Tensor, act: str, out_layout: str) -> tuple[Tensor, Tensor]:
    """`mm_dact`, and the fp32 sums of dZ over its columns [rows]: the bias gradient, summed before dZ is rounded."""
    rows = a.shape[0]
    return _empty(b, rows, out_layout), b.new_empty(rows, dtype=torch.promote_types(b.dtype, torch.float32))


@contract()
def mm_add(a: Packed24, b: Tensor, c: Tensor) -> Tensor:
    """D = A B + C [rows, n], column-major, in C's dtype: a residual without a pass of its own."""
    return _empty(c, a.shape[0], "col")


@contract()
def mm_glu(a: Packed24, b: Tensor, act: str, gate: str) -> tuple[Tensor, Tensor]:
    """(Z [2F, n], H [F, n]), rows = 2F: Z = A B and H = act(gate half) * other half, column-major, from one GEMM."""
    return _empty(b, a.shape[0], "col"), _empty(b, a.shape[0] // 2, "col")


@contract()
def mm_dglu(a: Packed24, b: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """dZ [2F, n], column-major, from dH = A B [rows = F, n] and Z [2F, n]: the backward of `mm_glu`."""
    return _empty(b, 2 * a.shape[0], "col")
