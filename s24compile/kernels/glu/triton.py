"""Triton kernels of GLU and its gradient, for any strides of z and dh.

Legend: z [..., 2F] and h [..., F], their leading dims flattened to T.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from s24compile.kernels.glu.triton_kernels import glu_forward, glu_gradient
from s24compile.kernels.providers import Provider
from s24compile.kernels.triton import tiles
from s24compile.kernels.triton.launch import launch
from s24compile.kernels.triton.planes import halves, plane
from s24compile.kernels.triton.supports import supports_act, supports_reading
from s24compile.kernels.triton.tiles import Tile


def _supports(z: Tensor, act: str, gate: str) -> str | None:
    return supports_reading(z) or supports_act(act)


def _supports_backward(dh: Tensor, z: Tensor, act: str, gate: str) -> str | None:
    return supports_reading(dh, z) or supports_act(act)


def _layout(*tensors: Tensor) -> str:
    """ "rows" or "columns" where all tensors [T, C] are contiguous along the same dim, else "mixed"."""
    found = {"rows" if abs(x.stride(1)) <= abs(x.stride(0)) else "columns" for x in tensors}
    return found.pop() if len(found) == 1 else "mixed"


def _grid(tile: Tile, sizes: Sequence[int]) -> int:
    return -(-sizes[0] // tile.rows) * -(-sizes[1] // tile.columns)


def glu_into(z: Tensor, h: Tensor, act: str, gate: str) -> None:
    """Writes glu of z [T, 2F] into h [T, F], both of any strides."""
    gated, other = halves(z, gate)
    layout = _layout(z, h)
    tile = tiles.GLU_TURNED if layout == "mixed" else tiles.GLU
    # The kernel does not mind which of its two dims are the tokens.
    strides, sizes = [z.stride(), h.stride()], h.shape
    if layout == "columns":
        strides, sizes = [s[::-1] for s in strides], sizes[::-1]
    launch(
        glu_forward, _grid(tile, sizes), tile, z.device,
        gated, *strides[0], other * z.stride(1), h, *strides[1], *sizes,
        ACT=act, BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip


def glu_backward_into(dh: Tensor, z: Tensor, dz: Tensor, act: str, gate: str) -> None:
    """Writes the gradient of glu at z [T, 2F] into dz [T, 2F]; dh [T, F]; any strides."""
    gated, other = halves(z, gate)
    d_gated, _ = halves(dz, gate)
    layout = _layout(dh, z, dz)
    tile = tiles.GLU_GRADIENT_TURNED if layout == "mixed" else tiles.GLU_GRADIENT
    strides, sizes = [dh.stride(), z.stride(), dz.stride()], dh.shape
    if layout == "columns":
        strides, sizes = [s[::-1] for s in strides], sizes[::-1]
    launch(
        glu_gradient, _grid(tile, sizes), tile, z.device, dh, *strides[0], gated, *strides[1], other * z.stride(1),
        d_gated, *strides[2], other * dz.stride(1), *sizes, ACT=act, BLOCK_T=tile.rows, BLOCK_F=tile.columns,
    )  # fmt: skip


def glu(z: Tensor, act: str, gate: str) -> Tensor:
    """See glu/reference.py."""
    h = z.new_empty((*z.shape[:-1], z.shape[-1] // 2))
    glu_into(plane(z)[0], plane(h)[0], act, gate)
    return h


def glu_backward(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """See glu/reference.py."""
    dz = z.new_empty(z.shape)
    glu_backward_into(plane(dh)[0], plane(z)[0], plane(dz)[0], act, gate)
    return dz


PROVIDERS = {
    "glu": Provider("triton", glu, _supports),
    "glu_backward": Provider("triton", glu_backward, _supports_backward),
}
