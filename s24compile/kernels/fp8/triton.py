"""Triton kernels of quantising and of packing into eight bits.

Legend: T tokens, F features; N, K logical rows and columns of the stacked weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.fp8 import triton_tiles as tiles
from s24compile.kernels.fp8.triton_amax import amax, by_rows
from s24compile.kernels.fp8.triton_cast import KINDS
from s24compile.kernels.fp8.triton_glu import glu_gradient_amax, glu_gradient_pack
from s24compile.kernels.fp8.triton_passes import quantise_tiles
from s24compile.kernels.fp8.triton_rows import pack_rows
from s24compile.kernels.fp8.triton_store import whole_atoms
from s24compile.kernels.fp8.triton_weights import pack_weights_fp8_, supports_weights
from s24compile.kernels.padding import empty_rows
from s24compile.kernels.providers import Provider
from s24compile.kernels.scaling import MVUE_HEADROOM, descale_of, scale_of
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.planes import halves, plane
from s24compile.kernels.triton.supports import supports_act, supports_reading


def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """In place of a result that was not asked for."""
    return torch.empty((0,), dtype=dtype, device=device)


def _supports_pack(g: Tensor, dtype: torch.dtype, format: str) -> str | None:
    if format != "sm90":
        return f"packs gradients in the sm90 format only, not {format}"
    return supports_reading(g)


def _supports_amax(x: Tensor) -> str | None:
    return supports_reading(x)


def _supports_quantise(x: Tensor, amax: Tensor, dtype: torch.dtype, layout: str) -> str | None:
    return supports_reading(x)


def quantise(x: Tensor, amax: Tensor, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """See fp8/reference.py."""
    tokens, features = x.shape
    q = empty_rows(tokens, features, dtype, x.device) if layout in ("row", "both") else _nothing(dtype, x.device)
    q_t = empty_rows(features, tokens, dtype, x.device) if layout in ("col", "both") else _nothing(dtype, x.device)
    # Without a program nobody would write it.
    descale = x.new_empty(1, dtype=torch.float32) if x.numel() else descale_of(scale_of(amax, dtype))
    view, turned = by_rows(x.detach())
    along, across = (q_t, q) if turned else (q, q_t)
    (rows, columns), tile = view.shape, tiles.QUANTISE
    launch(
        quantise_tiles, -(-rows // tile.rows) * -(-columns // tile.columns), tile, x.device,
        view, *view.stride(), rows, columns, amax,
        along.view(torch.uint8), along.stride(0), across.view(torch.uint8), across.stride(0), descale,
        ALONG=along.dim() == 2, ACROSS=across.dim() == 2, EVEN=rows % tile.rows == 0 and columns % tile.columns == 0,
        WORDS=rows % 4 == 0, KIND=KINDS[dtype], BLOCK_R=tile.rows, BLOCK_C=tile.columns,
    )  # fmt: skip
    return q, q_t, descale


def _supports_quantise_pack(
    g: Tensor, amax: Tensor, seed: Tensor, dtype: torch.dtype, format: str, rows: bool, sums: bool
) -> str | None:
    return _supports_pack(g, dtype, format)


def quantise_pack(
    g: Tensor, amax: Tensor, seed: Tensor, dtype: torch.dtype, format: str, rows: bool, sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See fp8/reference.py. One pass over a row-major g; two over a column-major one of which q is asked for."""
    g, (tokens, features) = g.detach(), g.shape
    values, metadata = FORMATS[format].empty_whole(features, tokens, dtype, g.device)
    descale, packed_descale = (g.new_empty(1, dtype=torch.float32) for _ in range(2))
    along = abs(g.stride(0)) < abs(g.stride(1))
    fused = rows and not along
    q = empty_rows(tokens, features, dtype, g.device) if fused else _nothing(dtype, g.device)
    tile = tiles.ROWS_ALONG if along else tiles.ROWS_BOTH if rows else tiles.ROWS
    block_k, block_m = (tile.columns, tile.rows) if along else (tile.rows, tile.columns)
    steps, across = whole_atoms(tokens, block_k), -(-features // block_m)
    partial = torch.empty((steps if sums else 0, features), dtype=torch.float32, device=g.device)
    launch(
        pack_rows, steps * across, tile, g.device,
        g, *g.stride(), tokens, features, amax, seed.to(g.device), amax, metadata,
        q.view(torch.uint8), q.stride(0), values.view(torch.uint8), values.stride(0), metadata.view(torch.int16),
        metadata.stride(0) // 2, 0, descale, packed_descale, partial,
        RULE="mvue", FACTOR=False, ROWS=fused, SUMS=sums, ALONG=along,
        EVEN=tokens % 128 == 0 and features % block_m == 0,
        FORMAT=format, KIND=KINDS[dtype], BLOCK_K=block_k, BLOCK_M=block_m,
    )  # fmt: skip
    if steps * across == 0:
        descale.copy_(descale_of(scale_of(amax, dtype)))
        packed_descale.copy_(descale_of(scale_of(amax, dtype, MVUE_HEADROOM)))
    if rows and along:
        q, _, descale = quantise(g, amax, dtype, "row")
    return q, values, metadata, descale, packed_descale, partial.sum(0) if sums else _nothing(torch.float32, g.device)


def _supports_glu(dh: Tensor, z: Tensor, act: str, gate: str) -> str | None:
    return supports_reading(dh, z) or supports_act(act)


def glu_backward_amax(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """See fp8/reference.py."""
    (flat_dh, dh_t, dh_f), (flat_z, z_t, z_f) = plane(dh), plane(z)
    (tokens, hidden), tile = flat_dh.shape, tiles.GLU_AMAX
    gated, other = halves(flat_z, gate)
    found = torch.zeros(1, dtype=torch.float32, device=z.device)
    launch(
        glu_gradient_amax, -(-tokens // tile.rows) * -(-hidden // tile.columns), tile, z.device,
        flat_dh, dh_t, dh_f, gated, z_t, z_f, other * z_f, tokens, hidden, found,
        ACT=act, BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip
    return found


def _supports_glu_pack(
    dh: Tensor,
    z: Tensor,
    amax: Tensor,
    act: str,
    gate: str,
    seed: Tensor,
    dtype: torch.dtype,
    format: str,
    sums: bool,
) -> str | None:
    if z.shape[-1] % 128:
        return f"packs halves of whole 64 rows only, not of {z.shape[-1] // 2}"
    return _supports_pack(z, dtype, format) or _supports_glu(dh, z, act, gate)


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
    """See fp8/reference.py."""
    flat_dh, flat_z = plane(dh)[0].contiguous(), plane(z)[0].contiguous()
    (tokens, wide), tile = flat_z.shape, tiles.GLU_PACK
    hidden = wide // 2
    values, metadata = FORMATS[format].empty_whole(wide, tokens, dtype, z.device)
    q = empty_rows(tokens, wide, dtype, z.device)
    if tokens == 0:
        scale, packed_scale = scale_of(amax, dtype), scale_of(amax, dtype, MVUE_HEADROOM)
        total = torch.zeros(wide if sums else 0, dtype=torch.float32, device=z.device)
        return q, values, metadata, descale_of(scale), descale_of(packed_scale), total
    descale, packed_descale = (z.new_empty(1, dtype=torch.float32) for _ in range(2))
    steps = whole_atoms(tokens, tile.rows)
    partial = torch.empty((steps if sums else 0, wide), dtype=torch.float32, device=z.device)
    (gated, other), (bytes, _) = halves(flat_z, gate), halves(q.view(torch.uint8), gate)
    rows = (0, hidden) if gate == "first" else (hidden, 0)
    launch(
        glu_gradient_pack, steps * -(-hidden // tile.columns), tile, z.device,
        flat_dh, flat_dh.stride(0), gated, flat_z.stride(0), other, amax, seed.to(z.device),
        bytes, q.stride(0), other, *rows, tokens, hidden,
        values.view(torch.uint8), values.stride(0), metadata.view(torch.int16), metadata.stride(0) // 2,
        descale, packed_descale, partial,
        ACT=act, SUMS=sums, EVEN=tokens % 128 == 0 and hidden % tile.columns == 0, FORMAT=format, KIND=KINDS[dtype],
        BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip
    total = partial.sum(0) if sums else _nothing(torch.float32, z.device)
    return q, values, metadata, descale, packed_descale, total


PROVIDERS = {
    "amax": Provider("triton", amax, _supports_amax),
    "quantise": Provider("triton", quantise, _supports_quantise),
    "quantise_pack": Provider("triton", quantise_pack, _supports_quantise_pack),
    "glu_backward_amax": Provider("triton", glu_backward_amax, _supports_glu),
    "glu_backward_quantise_pack": Provider("triton", glu_backward_quantise_pack, _supports_glu_pack),
    "pack_weights_fp8_": Provider("triton", pack_weights_fp8_, supports_weights),
}
"""Op name to provider: what `kernels.providers.find` reads."""
