"""Triton kernels of GLU and its gradient, for any strides of z and dh.

Legend: z [..., 2F] and h [..., F], their leading dims flattened to T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.glu.triton_kernels import glu_forward, glu_gradient
from s24compile.kernels.pack.triton import supported
from s24compile.kernels.pack.triton_tiles import GLU, GLU_GRADIENT, GLU_TURNED, Tile, launch
from s24compile.kernels.providers import Provider

_TAKEN = (torch.float32, torch.bfloat16, torch.float16)


def _supports(*args: Tensor | str) -> str | None:
    for x in args:
        if isinstance(x, Tensor) and x.dtype not in _TAKEN:
            return f"takes fp32, bf16 and fp16, not {x.dtype}"
    return None


def plane(x: Tensor) -> tuple[Tensor, int, int]:
    """x [..., C] as [T, C] and its two strides; a view wherever the leading dims allow."""
    flat = x.detach().reshape(-1, x.shape[-1])
    return flat, flat.stride(0), flat.stride(1)


def halves(z: Tensor, gate: str) -> tuple[Tensor, int]:
    """(the half of z [T, 2F] that the activation sees, columns from it to the other)."""
    hidden = z.shape[1] // 2
    return (z[:, :hidden], hidden) if gate == "first" else (z[:, hidden:], -hidden)


def choose_tile(flat: Tile, *planes: tuple[Tensor, int, int]) -> Tile:
    """`flat` where all planes are row-major; a squarer one where some turn."""
    return flat if all(abs(p[2]) <= abs(p[1]) for p in planes) else GLU_TURNED


def glu_into(z: Tensor, h: Tensor, act: str, gate: str) -> None:
    """Writes glu of z [T, 2F] into h [T, F], both of any strides."""
    tokens, hidden = h.shape
    gated, other = halves(z, gate)
    tile = choose_tile(GLU, plane(z), plane(h))
    programs = -(-tokens // tile.rows) * -(-hidden // tile.columns)
    strides = z.stride(0), z.stride(1), other * z.stride(1)
    launch(
        glu_forward, programs, tile, z.device, gated, *strides, h, h.stride(0), h.stride(1), tokens, hidden,
        ACT=act, BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip


def glu_backward_into(dh: Tensor, z: Tensor, dz: Tensor, act: str, gate: str) -> None:
    """Writes the gradient of glu at z [T, 2F] into dz [T, 2F]; dh [T, F]; any strides."""
    tokens, hidden = dh.shape
    gated, other = halves(z, gate)
    d_gated, _ = halves(dz, gate)
    tile = choose_tile(GLU_GRADIENT, plane(z), plane(dh), plane(dz))
    programs = -(-tokens // tile.rows) * -(-hidden // tile.columns)
    launch(
        glu_gradient, programs, tile, z.device, dh, dh.stride(0), dh.stride(1),
        gated, z.stride(0), z.stride(1), other * z.stride(1), d_gated, dz.stride(0), dz.stride(1), other * dz.stride(1),
        tokens, hidden, ACT=act, BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip


def glu(z: Tensor, act: str, gate: str) -> Tensor:
    """See glu/reference.py."""
    h = z.new_empty((*z.shape[:-1], z.shape[-1] // 2))
    glu_into(plane(z)[0], h.view(-1, h.shape[-1]), act, gate)
    return h


def glu_backward(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """See glu/reference.py."""
    dz = z.new_empty(z.shape)
    glu_backward_into(plane(dh)[0], plane(z)[0], dz.view(-1, dz.shape[-1]), act, gate)
    return dz


PROVIDERS = {
    "glu": Provider("triton", glu, supported, _supports),
    "glu_backward": Provider("triton", glu_backward, supported, _supports),
}
