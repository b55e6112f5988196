"""Contracts of GEMMs with an activation in their epilogue; only lowering makes them.

Legend: S packed [rows, cols], B [cols, n]; "col" results have strides (1, rows).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from s24compile.kernels import providers


def _empty(b: Tensor, rows: int, layout: str) -> Tensor:
    n = b.shape[1]
    return b.new_empty((rows, n)) if layout == "row" else b.new_empty((n, rows)).t()


@custom_op("s24::mm_act", mutates_args=())
def mm_act(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    bias: Tensor | None,
    act: str,
    out_layout: str,
) -> tuple[Tensor, Tensor]:
    """(Z, H): Z = S B + bias[:, None] and H = act(Z), both in B's dtype, from one GEMM."""
    return providers.run("mm_act", values, metadata, rows, cols, format, b, bias, act, out_layout)


@mm_act.register_fake
def _(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    bias: Tensor | None,
    act: str,
    out_layout: str,
) -> tuple[Tensor, Tensor]:
    return _empty(b, rows, out_layout), _empty(b, rows, out_layout)


@custom_op("s24::mm_dact", mutates_args=())
def mm_dact(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    z: Tensor,
    act: str,
    out_layout: str,
) -> Tensor:
    """dZ = (S B) * act'(Z), in B's dtype: the backward of `mm_act`. Z [rows, n] in the layout of the result."""
    return providers.run("mm_dact", values, metadata, rows, cols, format, b, z, act, out_layout)


@mm_dact.register_fake
def _(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    z: Tensor,
    act: str,
    out_layout: str,
) -> Tensor:
    return _empty(b, rows, out_layout)


@custom_op("s24::mm_dact_sum", mutates_args=())
def mm_dact_sum(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    z: Tensor,
    act: str,
    out_layout: str,
) -> tuple[Tensor, Tensor]:
    """`mm_dact`, and the fp32 sums of dZ over its columns [rows]: the bias gradient, summed before dZ is rounded."""
    return providers.run("mm_dact_sum", values, metadata, rows, cols, format, b, z, act, out_layout)


@mm_dact_sum.register_fake
def _(
    values: Tensor,
    metadata: Tensor,
    rows: int,
    cols: int,
    format: str,
    b: Tensor,
    z: Tensor,
    act: str,
    out_layout: str,
) -> tuple[Tensor, Tensor]:
    return _empty(b, rows, out_layout), b.new_empty(rows, dtype=torch.promote_types(b.dtype, torch.float32))


@custom_op("s24::mm_add", mutates_args=())
def mm_add(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, c: Tensor) -> Tensor:
    """D = S B + C [rows, n], column-major, in C's dtype: a residual without a pass of its own."""
    return providers.run("mm_add", values, metadata, rows, cols, format, b, c)


@mm_add.register_fake
def _(values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, c: Tensor) -> Tensor:
    return _empty(c, rows, "col")


@custom_op("s24::mm_glu", mutates_args=())
def mm_glu(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, act: str, gate: str
) -> tuple[Tensor, Tensor]:
    """(Z [2F, n], H [F, n]), rows = 2F: Z = S B and H = act(gate half) * other half, column-major, from one GEMM."""
    return providers.run("mm_glu", values, metadata, rows, cols, format, b, act, gate)


@mm_glu.register_fake
def _(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, act: str, gate: str
) -> tuple[Tensor, Tensor]:
    return _empty(b, rows, "col"), _empty(b, rows // 2, "col")


@custom_op("s24::mm_dglu", mutates_args=())
def mm_dglu(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, z: Tensor, act: str, gate: str
) -> Tensor:
    """dZ [2F, n], column-major, from dH = S B [rows = F, n] and Z [2F, n]: the backward of `mm_glu`."""
    return providers.run("mm_dglu", values, metadata, rows, cols, format, b, z, act, gate)


@mm_dglu.register_fake
def _(
    values: Tensor, metadata: Tensor, rows: int, cols: int, format: str, b: Tensor, z: Tensor, act: str, gate: str
) -> Tensor:
    return _empty(b, 2 * rows, "col")
