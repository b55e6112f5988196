"""Runs the CUTLASS kernels with gated epilogues on torch tensors.

Legend: T tokens, F hidden width, D model width. Z and dZ [2F, T] and H [F, T] are column-major: their transposes are
the row-major activations of the graph, the two halves of Z side by side.
"""

from __future__ import annotations

import torch

from s24compile.kernels.gemm.cutlass import tuned
from s24compile.kernels.gemm.cutlass.layouts import empty, like_output, operand
from s24compile.kernels.gemm.cutlass.plan import Scales, make_plan, metadata_pitch, submit, sums_of
from s24compile.kernels.packed import Packed24


def mm_glu(
    a: Packed24,
    b: torch.Tensor,
    act: str,
    gate: str,
    choice: tuned.Choice | None = None,
    out_dtype: torch.dtype | None = None,
    scales: Scales | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Z [2F, T], H [F, T]) = (A B, act(gate half) * other half), both of the fp32 sums, in one pass.

    Args:
        a: [2F, D] in the "sm90_gated" format, F a multiple of 8.
        b: [D, T].
        out_dtype: None for B's; given with `scales`, which 8-bit operands have.
    """
    (rows, cols), metadata, n, dtype = a.shape, a.metadata, b.shape[1], out_dtype or b.dtype
    z, h = empty(rows, n, "col", dtype, b.device), empty(rows // 2, n, "col", dtype, b.device)
    if min(rows, cols, n) == 0:
        return z.zero_(), h.zero_()
    a_major, values, a_pitch = operand(a.values, "k", "m")
    b_major, b, b_pitch = operand(b, "n", "k")
    types = values.dtype, a_major, b_major, "col", dtype
    plan = make_plan(*types, "glu", act, "", rows, n, cols, choice, b.dtype, sums_of(scales))
    pointers = (values.data_ptr(), metadata.data_ptr(), b.data_ptr(), h.data_ptr(), 0, z.data_ptr(), 0)
    other = rows // 2 if gate == "first" else -(rows // 2)
    strides = (a_pitch, metadata_pitch(metadata), b_pitch, rows // 2, rows, other)
    submit(plan, pointers, strides, (rows, n, cols), metadata.shape[1], b.get_device(), scales=scales)
    return z, h


def mm_dglu(
    a: Packed24,
    b: torch.Tensor,
    z: torch.Tensor,
    act: str,
    gate: str,
    choice: tuned.Choice | None = None,
    scales: Scales | None = None,
) -> torch.Tensor:
    """dZ [2F, T] from dH = A B [F, T] and Z [2F, T]: the backward of `mm_glu`.

    Args:
        z: any layout; copied unless it is column-major.
        scales: of 8-bit operands; dZ is in Z's dtype then, else in B's.
    """
    (rows, cols), metadata, n, dtype = a.shape, a.metadata, b.shape[1], b.dtype if scales is None else z.dtype
    dz = empty(2 * rows, n, "col", dtype, b.device)
    if min(rows, cols, n) == 0:
        return dz.zero_()
    a_major, values, a_pitch = operand(a.values, "k", "m")
    b_major, b, b_pitch = operand(b, "n", "k")
    z = like_output(z, dz, "col", dtype)
    types = values.dtype, a_major, b_major, "col", dtype
    plan = make_plan(*types, "dglu", act, "", rows, n, cols, choice, b.dtype, sums_of(scales))
    # The pointers are to the halves that the activation saw.
    seen, other = (0, rows) if gate == "first" else (rows * dtype.itemsize, -rows)
    pointers = (values.data_ptr(), metadata.data_ptr(), b.data_ptr(), dz.data_ptr() + seen, 0, z.data_ptr() + seen, 0)
    strides = (a_pitch, metadata_pitch(metadata), b_pitch, 2 * rows, z.stride(1), other)
    submit(plan, pointers, strides, (rows, n, cols), metadata.shape[1], b.get_device(), scales=scales)
    return dz
