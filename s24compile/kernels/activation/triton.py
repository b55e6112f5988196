"""Triton kernels of 2:4 hidden states: one pass forward, one backward. Legend: T tokens, F hidden width."""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.activation.triton_backward import backward_pack
from s24compile.kernels.activation.triton_forward import pack_state
from s24compile.kernels.format import FORMATS
from s24compile.kernels.packed import Packed24
from s24compile.kernels.providers import Provider
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.parts import Buffers, planes
from s24compile.kernels.triton.supports import supports_gradient, unaligned_operand

WIDTH = 16


def _supports_pack(z: Tensor, keep: Tensor | None, activation: str, scale: float, format: str) -> str | None:
    return supports_gradient(z, z.dtype, format) or _supports_width(z)


def _supports_width(z: Tensor) -> str | None:
    return f"packs whole cells of {WIDTH} features only, not {z.shape[1]} features" if z.shape[1] % WIDTH else None


def activation_pack(
    z: Tensor, keep: Tensor | None, activation: str, scale: float, format: str
) -> tuple[Tensor, Tensor, Tensor]:
    """See activation/reference.py. A z that is neither row- nor column-major is copied first."""
    tokens, hidden = z.shape
    along = z.stride(0) != 1 or z.stride(1) == 1
    if along and not _has_whole_words(z):
        z = z.contiguous()
    values, metadata = FORMATS[format].empty(tokens, hidden, z.dtype, z.device)
    counts = torch.empty((-(-tokens // 64), -(-hidden // 64), 5), dtype=torch.float32, device=z.device)
    operand = Buffers.of(values, metadata, format)
    tile = tiles.STATE_ALONG if along else tiles.STATE
    block_t, block_f = (tile.rows, tile.columns) if along else (tile.columns, tile.rows)
    kept = values if keep is None else (keep.contiguous() if along else keep).view(torch.uint8)
    launch(
        pack_state, -(-tokens // block_t) * -(-hidden // block_f), tile, z.device,
        z, *z.stride(), kept, *((0, 0) if keep is None else kept.stride()), float(scale), tokens, hidden,
        values, values.stride(0), operand.cells, operand.cells.stride(0), counts,
        ACT=activation, SCALED=scale != 1.0 or keep is not None, KEEP=keep is not None, ALONG=along,
        EVEN=tokens % block_t == 0 and hidden % block_f == 0, FORMAT=format, BLOCK_T=block_t, BLOCK_F=block_f,
    )  # fmt: skip
    return values, metadata, counts


def _supports_backward(
    dp: Tensor,
    p: Packed24,
    activation: str,
    scale: float,
    seed: Tensor,
    estimate_dz: bool,
    estimate_p: bool,
    sums: bool,
) -> str | None:
    if dp.dtype != p.dtype:
        return f"takes gradients of the dtype of p only, not {dp.dtype} beside {p.dtype}"
    return supports_gradient(dp, p.dtype, p.format) or _supports_width(dp) or unaligned_operand(p.values)


def activation_backward_pack(
    dp: Tensor,
    p: Packed24,
    activation: str,
    scale: float,
    seed: Tensor,
    estimate_dz: bool,
    estimate_p: bool,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See activation/reference.py. Sums of tiles are added in a second, small pass: the result does not vary by run."""
    (tokens, hidden), form = p.shape, FORMATS[p.format]
    columns = dp.stride(0) == 1 and dp.stride(1) % 2 == 0 and dp.stride(1) > 1 and dp.data_ptr() % 4 == 0
    if not columns and not _has_whole_words(dp):
        dp = dp.contiguous()
    dz = form.empty(tokens, hidden, p.dtype, dp.device)[0]
    across, nothing = FORMATS[form.transposed], (dz.new_empty((0,)), p.metadata.new_empty((0,)))
    operands = [
        # Each result is a tensor of its own, the empty ones too.
        across.empty_whole(hidden, tokens, p.dtype, dp.device)
        if wanted
        else (torch.empty_like(nothing[0]), torch.empty_like(nothing[1]))
        for wanted in (estimate_dz, estimate_p)
    ]
    whole = operands[0 if estimate_dz else 1] if estimate_dz or estimate_p else nothing
    cells = [planes(metadata, p.format) if metadata.numel() else metadata for _, metadata in operands]
    tile = tiles.STATE_GRADIENT
    steps = -(-tokens // tile.rows)
    partial = torch.empty((steps if sums else 0, hidden), dtype=torch.float32, device=dp.device)
    own = planes(p.metadata, p.format)
    launch(
        backward_pack, steps * -(-hidden // tile.columns), tile, dp.device,
        dp, *dp.stride(), p.values, p.values.stride(0), own, own.stride(0), float(scale), tokens, hidden,
        seed.to(dp.device), dz, dz.stride(0), operands[0][0], operands[1][0], whole[0].stride(0), *cells,
        planes(whole[1], p.format).stride(0) if whole[1].numel() else 0, partial,
        ACT=activation, SCALED=scale != 1.0, COLUMNS=columns, OF_DZ=estimate_dz, OF_P=estimate_p, SUMS=sums,
        EVEN=tokens % tile.rows == 0 and hidden % tile.columns == 0, FORMAT=p.format,
        BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip
    return dz, *operands[0], *operands[1], partial.sum(0) if sums else partial.new_empty((0,))


def _has_whole_words(z: Tensor) -> bool:
    """Whether neighbours along F lie two in a word, in every row."""
    return z.stride(1) == 1 and z.stride(0) % 2 == 0 and z.data_ptr() % 4 == 0


PROVIDERS = {
    "activation_pack": Provider("triton", activation_pack, _supports_pack),
    "activation_backward_pack": Provider("triton", activation_backward_pack, _supports_backward),
}
