"""Runs the CUTLASS kernels on torch tensors: layouts, outputs, one function per epilogue.

Shapes: A [M, K] packed as values [M, K4/2] and metadata [k_atoms, m_atoms, 256]; B [K, N]; D [M, N].
"""

from __future__ import annotations

import torch

from s24compile.kernels.activations import activation
from s24compile.kernels.gemm.cutlass import tuned
from s24compile.kernels.gemm.cutlass.layouts import empty, like_output, operand, output
from s24compile.kernels.gemm.cutlass.plan import NAMES, Scales, make_plan, metadata_pitch, submit, sums_of
from s24compile.kernels.packed import Packed24


def mm(
    a: Packed24,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    out_layout: str,
    out_dtype: torch.dtype,
    choice: tuned.Choice | None = None,
) -> torch.Tensor:
    """D = A B + bias[:, None], D row-major, or column-major with strides (1, M). `choice` overrides the tuned table."""
    if min(*a.shape, b.shape[1]) == 0:
        d = empty(a.shape[0], b.shape[1], out_layout, out_dtype, b.device).zero_()
        return d if bias is None else d.add_(bias[:, None])
    epilogue = "plain" if bias is None else "bias"
    return run(a, b, epilogue, "", bias, None, out_layout, out_dtype, choice=choice)[0]


def mm_act(
    a: Packed24,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    act: str,
    out_layout: str,
    choice: tuned.Choice | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(Z, H): Z = A B + bias[:, None], H = act(Z), in one pass; both in B's dtype and `out_layout`.

    `act` is applied to the fp32 sum, before Z is rounded.
    """
    if min(*a.shape, b.shape[1]) == 0:
        nothing = mm(a, b, bias, out_layout, b.dtype)
        return nothing, activation(act).value(nothing)
    h, z = run(a, b, "act", act, bias, None, out_layout, b.dtype, choice=choice)
    assert z is not None
    return z, h


def mm_dact(
    a: Packed24,
    b: torch.Tensor,
    z: torch.Tensor,
    act: str,
    out_layout: str,
    choice: tuned.Choice | None = None,
) -> torch.Tensor:
    """dZ = (A B) * act'(Z): the backward of `mm_act`, Z [M, N] in any layout (copied unless it is `out_layout`)."""
    if min(*a.shape, b.shape[1]) == 0:
        return mm(a, b, None, out_layout, b.dtype)
    return run(a, b, "dact", act, None, z, out_layout, b.dtype, choice=choice)[0]


def mm_dact_sum(
    a: Packed24,
    b: torch.Tensor,
    z: torch.Tensor,
    act: str,
    out_layout: str,
    choice: tuned.Choice | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dZ, its fp32 sums over N [M]): `mm_dact`, and the bias gradient. Sums are of dZ before it is rounded.

    The kernel sums the columns of each tile of D; the tiles of a row are added up here, always in the same order.
    """
    if min(*a.shape, b.shape[1]) == 0:
        dz = mm(a, b, None, out_layout, b.dtype)
        return dz, torch.zeros(a.shape[0], dtype=torch.float32, device=b.device)
    dz, partial = run(a, b, "dact_sum", act, None, z, out_layout, b.dtype, choice=choice)
    assert partial is not None
    return dz, partial[:, : a.shape[0]].sum(0)


def mm_add(a: Packed24, b: torch.Tensor, c: torch.Tensor, beta: float = 1.0, out_layout: str = "col") -> torch.Tensor:
    """D = A B + beta C, C [M, N] of D's dtype: accumulation or a residual."""
    if min(*a.shape, b.shape[1]) == 0:
        return mm(a, b, None, out_layout, c.dtype).add_(c, alpha=beta)
    return run(a, b, "add", "", None, c, out_layout, c.dtype, beta)[0]


def run(
    a: Packed24,
    b: torch.Tensor,
    epilogue: str,
    act: str,
    bias: torch.Tensor | None,
    source: torch.Tensor | None,
    out_layout: str,
    out_dtype: torch.dtype,
    beta: float = 0.0,
    choice: tuned.Choice | None = None,
    scales: Scales | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(D, what the epilogue writes beside it) of a problem that is not empty.

    Args:
        source: Z ("dact", "dact_sum") or C ("add"), any layout.
        scales: of 8-bit operands.
    """
    (m, k), n, metadata = a.shape, b.shape[1], a.metadata
    device = b.get_device()
    a_major, values, a_pitch = operand(a.values, "k", "m")
    b_major, b, b_pitch = operand(b, "n", "k")
    bias_name = "" if bias is None else NAMES[bias.dtype]
    if bias is not None and not bias.is_contiguous():
        bias = bias.contiguous()
    types = values.dtype, a_major, b_major, out_layout, out_dtype
    plan = make_plan(*types, epilogue, act, bias_name, m, n, k, choice, b.dtype, sums_of(scales))

    target, d = output(m, n, out_layout, out_dtype, b.device)
    pitch = target.stride(0 if out_layout == "row" else 1)
    z = partial = None
    aux = source_pointer = aux_pitch = 0
    if epilogue == "act":
        z_target, z = output(m, n, out_layout, out_dtype, b.device)
        aux, aux_pitch = z_target.data_ptr(), pitch
    elif source is not None:
        source = like_output(source, target, out_layout, out_dtype)
        aux_pitch = source.stride(0 if out_layout == "row" else 1)
        aux, source_pointer = (0, source.data_ptr()) if epilogue == "add" else (source.data_ptr(), 0)
    if epilogue == "dact_sum":
        tile_m, tile_n = plan.loaded.kernel.schedule.tile
        bias = partial = b.new_empty(-(-n // tile_n), -(-m // tile_m) * tile_m, dtype=torch.float32)

    pointers = [values.data_ptr(), metadata.data_ptr(), b.data_ptr(), target.data_ptr(), source_pointer, aux]
    pointers.append(0 if bias is None else bias.data_ptr())
    strides = (a_pitch, metadata_pitch(metadata), b_pitch, pitch, aux_pitch, 0)
    submit(plan, pointers, strides, (m, n, k), metadata.shape[1], device, beta, scales)
    if target is not d:
        d.copy_(target[:m, :n])
        if z is not None:
            z.copy_(z_target[:m, :n])
    return d, z if partial is None else partial
