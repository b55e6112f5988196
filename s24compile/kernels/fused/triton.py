"""Triton kernels of the fused ops. Legend: T tokens, F hidden width."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.decay.triton import masked_decay_many_, supports_many
from s24compile.kernels.format import FORMATS
from s24compile.kernels.glu.triton import glu, glu_backward, halves, plane
from s24compile.kernels.glu.triton_pack import glu_gradient_pack
from s24compile.kernels.pack import triton_tiles as tiles
from s24compile.kernels.pack.triton import pack_along
from s24compile.kernels.pack.triton_many import pack_weights_, supports_weights
from s24compile.kernels.pack.triton_parts import Packed, planes
from s24compile.kernels.pack.triton_supports import supported, supports_gradient
from s24compile.kernels.pack.triton_tiles import launch
from s24compile.kernels.providers import Provider


def _supports_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> str | None:
    return supports_gradient(g, dtype, format)


def mvue_pack_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """See fused/reference.py. Sums of tiles are added in a second, small pass: the result does not vary by run."""
    values, metadata = FORMATS[format].empty(g.shape[1], g.shape[0], dtype, g.device)
    operand = Packed(values, planes(metadata, format))
    sums = pack_along(g, "mvue", operand, format, seed=seed.to(g.device), sums=True)
    assert sums is not None
    return values, metadata, sums


def _supports_glu(
    dh: Tensor,
    z: Tensor,
    act: str,
    gate: str,
    seed: Tensor,
    dtype: torch.dtype,
    format: str,
    sums: bool,
    recompute: bool,
) -> str | None:
    return supports_gradient(z, dtype, format) or supports_gradient(dh, dtype, format)


def glu_backward_pack(
    dh: Tensor,
    z: Tensor,
    act: str,
    gate: str,
    seed: Tensor,
    dtype: torch.dtype,
    format: str,
    sums: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See fused/reference.py. One pass where it pays and both are row-major with F a multiple of 64; two otherwise."""
    (flat_dh, dh_t, dh_f), (flat_z, z_t, z_f) = plane(dh), plane(z)
    tokens, wide = flat_z.shape
    hidden = wide // 2
    values, metadata = FORMATS[format].empty(wide, tokens, dtype, z.device)
    operand, seed = Packed(values, planes(metadata, format)), seed.to(z.device)
    tile = tiles.GLU_PACK
    if tile is None or dh_f != 1 or z_f != 1 or hidden % 64:
        dz = glu_backward(dh, z, act, gate)
        total = pack_along(dz.view(tokens, wide), "mvue", operand, format, seed=seed, sums=sums)
        h = glu(z, act, gate) if recompute else z.new_empty((0,))
        return dz, values, metadata, _no_sums(z) if total is None else total, h
    dz = z.new_empty(z.shape)
    h = z.new_empty((*z.shape[:-1], hidden) if recompute else (0,))
    steps = -(-tokens // tile.rows)
    partial = torch.empty((steps if sums else 0, wide), dtype=torch.float32, device=z.device)
    gated, other = halves(flat_z, gate)
    d_gated, _ = halves(dz.view(tokens, wide), gate)
    rows = (0, hidden) if gate == "first" else (hidden, 0)
    launch(
        glu_gradient_pack, steps * -(-hidden // tile.columns), tile, z.device,
        flat_dh, dh_t, gated, z_t, other, d_gated, wide, other, h, hidden, tokens, hidden, seed,
        *rows, values, values.stride(0), operand.cells, operand.cells.stride(0), partial,
        ACT=act, SUMS=sums, RECOMPUTE=recompute, EVEN=tokens % tile.rows == 0 and hidden % tile.columns == 0,
        FORMAT=format, BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip
    return dz, values, metadata, partial.sum(0) if sums else _no_sums(z), h


def _no_sums(z: Tensor) -> Tensor:
    return z.new_empty((0,), dtype=torch.float32)


PROVIDERS = {
    "mvue_pack_sum": Provider("triton", mvue_pack_sum, supported, _supports_sum),
    "glu_backward_pack": Provider("triton", glu_backward_pack, supported, _supports_glu),
    "pack_weights_": Provider("triton", pack_weights_, supported, supports_weights),
    "masked_decay_many_": Provider("triton", masked_decay_many_, supported, supports_many),
}
