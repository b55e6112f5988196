"""Quantising and packing into eight-bit floats, by the arithmetic of `scaling.py`; every kernel follows it to the bit.

Legend: T tokens, F features; N, K logical rows and columns of stacked weights.

wgmma multiplies 8-bit operands only where both lie along the contraction dim. So what a training step contracts along
two dims exists twice, the second time transposed, and each pass here writes both from one read.

Quantised matrices have row pitches of whole 16 bytes, which TMA asks for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.glu.reference import glu_backward
from s24compile.kernels.mvue.reference import column_sums
from s24compile.kernels.mvue.reference import mvue_pack as estimate
from s24compile.kernels.pack.reference import pack_weight_, unpack
from s24compile.kernels.packed import Packed24
from s24compile.kernels.padding import empty_rows
from s24compile.kernels.scaling import MVUE_HEADROOM, descale_of, finite_amax, quantised, scale_of
from s24compile.kernels.stacks import Packing, Stacks


def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What an op returns in place of a result that was not asked for."""
    return torch.empty((0,), dtype=dtype, device=device)


def amax(x: Tensor) -> Tensor:
    """fp32 [1]: the largest finite magnitude of x; see `scaling.py`."""
    return finite_amax(x)


def quantise(x: Tensor, amax: Tensor, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, F] in eight bits, as it is and transposed.

    Args:
        x: any float dtype and strides.
        amax: fp32 [1], that of x, or of an earlier one (what is larger then saturates).
        dtype: float8_e4m3fn or float8_e5m2.
        layout: "row", "col" or "both".

    Returns:
        (q [T, F], q^T [F, T], descale fp32 [1]), both row-major with pitches of whole 16 bytes; of one that was not
        asked for, an empty tensor.
    """
    scale = scale_of(amax, dtype)
    q = quantised(x, scale, dtype)
    found = [_nothing(dtype, x.device), _nothing(dtype, x.device)]
    for place, (name, matrix) in enumerate((("row", q), ("col", q.t()))):
        if layout in (name, "both"):
            found[place] = empty_rows(matrix.shape[0], matrix.shape[1], dtype, x.device).copy_(matrix)
    return found[0], found[1], descale_of(scale)


def quantise_pack(
    g: Tensor, amax: Tensor, seed: Tensor, dtype: torch.dtype, format: str, rows: bool, sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the two GEMMs of a backward read of a gradient g [T, F]: g itself, and MVUE(g^T) packed.

    The estimate is drawn from g as it is, before anything is rounded, and has a scale of its own (`MVUE_HEADROOM`).

    Args:
        amax: fp32 [1], of g.
        seed: one int64 element.
        rows: quantise g as well.
        sums: also the sums of g over T: a bias gradient.

    Returns:
        (q [T, F], values, metadata of the operand [F, T], descale of q, descale of the values, sums fp32 [F]); of what
        was not asked for, an empty tensor. T is padded with zeros to a multiple of 4, as in `mvue_pack`.
    """
    scale = scale_of(amax, dtype, MVUE_HEADROOM)
    values, metadata = estimate(g, seed, dtype, format, scale)
    q, _, descale = quantise(g, amax, dtype, "row" if rows else "")
    total = column_sums(g) if sums else _nothing(torch.promote_types(g.dtype, torch.float32), g.device)
    return q, values, metadata, descale, descale_of(scale), total


def glu_backward_amax(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """`amax` of the dz that `glu_backward` gives."""
    return finite_amax(glu_backward(dh, z, act, gate))


def glu_backward_quantise_pack(
    dh: Tensor,
    z: Tensor,
    amax: Tensor,
    act: str,
    gate: str,
    seed: Tensor,
    dtype: torch.dtype,
    format: str,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`quantise_pack` of the dz [T, 2F] that `glu_backward` gives, which itself is not written."""
    dz = glu_backward(dh, z, act, gate)
    return quantise_pack(dz.reshape(-1, dz.shape[-1]), amax, seed, dtype, format, True, sums)


def unpack_transposed(a: Packed24) -> Tensor:
    """A^T [cols, rows] of an A of eight-bit floats: what a product reads whose contraction runs along A's rows."""
    rows, cols = a.shape
    return empty_rows(cols, rows, a.dtype, a.values.device).copy_(unpack(a).t())


def pack_weights_fp8_(stacks: Stacks, descales: Sequence[Tensor], scales: Sequence[Tensor], packing: Packing) -> None:
    """`pack_weights_` into eight-bit floats, each operand by the amax of the weights that are stacked in it.

    Of the weights as they are, the pruned elements among them: the largest of four is kept but by a transposable mask.
    With "soft_threshold" the amax is that of `scales` times the weights, which bounds what is packed.

    Args:
        descales: fp32 [1] per operand, written: W~ is unpack(values) times it, W~^T likewise.
        scales: with "soft_threshold" the beta of each weight (0-d), in the order of `stacks.weights`; else empty.
    """
    start = 0
    for stack, descale in zip(stacks.each(), descales, strict=True):
        stop = start + len(stack.weights)
        sizes = [finite_amax(w) for w in stack.weights]
        betas = [beta.reshape(1).float() for beta in scales[start:stop]]
        if betas:
            sizes = [size * beta.abs() for size, beta in zip(sizes, betas, strict=True)]
        scale = scale_of(torch.cat(sizes).amax(0, keepdim=True), stack.values.dtype)
        pack_weight_(stack, torch.cat([beta * scale for beta in betas]) if betas else scale, packing)
        descale.copy_(descale_of(scale))
        start = stop
