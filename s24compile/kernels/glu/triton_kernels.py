"""Gated linear units forward and backward, one read and one write of each tensor, any strides.

Legend: T tokens, F hidden. Tiles are two-dimensional, so a column-major tensor among row-major ones costs a layout
change in registers, not scattered accesses; program (tile of T, tile of F), tiles of F first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.activations import activate, activate_with_slope
from s24compile.kernels.triton.values import narrow, widen


@triton.jit
def _tile(T, F, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr):
    """(token [BLOCK_T, 1], feature [1, BLOCK_F], whether both exist), int64."""
    tiles = tl.cdiv(F, BLOCK_F)
    program = tl.program_id(0)
    token = ((program // tiles).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T))[:, None]
    feature = ((program % tiles).to(tl.int64) * BLOCK_F + tl.arange(0, BLOCK_F))[None, :]
    return token, feature, (token < T) & (feature < F)


@triton.jit
def glu_forward(
    z, z_t, z_f, other, h, h_t, h_f, T, F, ACT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr
):  # fmt: skip
    """h = act(gated) * other. z: the gated half [T, F]; other: how many elements after it the other half begins."""
    token, feature, inside = _tile(T, F, BLOCK_T, BLOCK_F)
    at = z + token * z_t + feature * z_f
    gated = widen(tl.load(at, mask=inside, other=0.0))
    linear = widen(tl.load(at + other, mask=inside, other=0.0))
    out = narrow(activate(gated, ACT, z.dtype.element_ty != tl.float32) * linear, h.dtype.element_ty)
    tl.store(h + token * h_t + feature * h_f, out, mask=inside)


@triton.jit
def glu_gradient(
    dh, dh_t, dh_f, z, z_t, z_f, other, dz, dz_t, dz_f, dz_other, T, F,
    ACT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """dz from dh and z, both halves; the activation is recomputed."""
    token, feature, inside = _tile(T, F, BLOCK_T, BLOCK_F)
    at = z + token * z_t + feature * z_f
    gated = widen(tl.load(at, mask=inside, other=0.0))
    linear = widen(tl.load(at + other, mask=inside, other=0.0))
    gradient = widen(tl.load(dh + token * dh_t + feature * dh_f, mask=inside, other=0.0))
    activated, slope = activate_with_slope(gated, ACT, z.dtype.element_ty != tl.float32)
    out = dz + token * dz_t + feature * dz_f
    tl.store(out, narrow(gradient * linear * slope, dz.dtype.element_ty), mask=inside)
    tl.store(out + dz_other, narrow(gradient * activated, dz.dtype.element_ty), mask=inside)
