"""What the paper's tables 2 and 3 compare with, in torch, and the naive access pattern as a Triton launch.

Legend: B blocks of 4x4; T tokens, F hidden width. [Hu et al., ICML 2024, tables 2 and 3]
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels import ops
from s24compile.kernels.glu.triton import glu_backward_into, glu_into
from s24compile.kernels.triton import tiles


def search_by_convolution(w: Tensor) -> Tensor:
    """The 90 scores of each block as a strided convolution, then argmax: the paper's own method. uint8 [m/4, n/4]."""
    kernels = ops.expand_patterns(torch.arange(90, dtype=torch.uint8, device=w.device)[:, None], "transposable")
    filters = kernels.view(90, 1, 4, 4).to(w.dtype)
    scores = torch.nn.functional.conv2d(w.abs()[None, None], filters, stride=4)
    return scores[0].argmax(0).to(torch.uint8)


def search_by_two_approximation(w: Tensor) -> Tensor:
    """Takes entries of a block from the largest down while their row and column have room [Hubara et al. 2021].

    At least half of the best mask's norm. bool [m, n].
    """
    m, n = w.shape
    blocks = w.abs().view(m // 4, 4, n // 4, 4).transpose(1, 2).reshape(-1, 16)
    order = blocks.argsort(dim=1, descending=True)
    rows = torch.zeros(blocks.shape[0], 4, dtype=torch.uint8, device=w.device)
    columns, kept = torch.zeros_like(rows), torch.zeros(blocks.shape, dtype=torch.bool, device=w.device)
    for rank in range(16):
        place = order[:, rank : rank + 1]
        row, column = place // 4, place % 4
        room = (rows.gather(1, row) < 2) & (columns.gather(1, column) < 2)
        kept.scatter_(1, place, room)
        rows.scatter_add_(1, row, room.to(torch.uint8))
        columns.scatter_add_(1, column, room.to(torch.uint8))
    return kept.view(m // 4, n // 4, 4, 4).transpose(1, 2).reshape(m, n)


def geglu_eager(z: Tensor) -> Tensor:
    """GEGLU in torch's own kernels, in z's layout."""
    gate, other = z.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate) * other


def geglu_row_access(z: Tensor, h: Tensor) -> None:
    """The same kernel with one-row tiles, as for a row-major z: on a column-major one each element is a sector."""
    kept = tiles.GLU, tiles.GLU_TURNED
    try:
        tiles.GLU_TURNED = tiles.Tile(1, 1024, 4)
        glu_into(z, h, "gelu", "first")
    finally:
        tiles.GLU, tiles.GLU_TURNED = kept


def geglu_backward_row_access(dh: Tensor, z: Tensor, dz: Tensor) -> None:
    """`glu_backward_into` with one-row tiles."""
    kept = tiles.GLU_GRADIENT_TURNED
    try:
        tiles.GLU_GRADIENT_TURNED = tiles.Tile(1, 1024, 4)
        glu_backward_into(dh, z, dz, "gelu", "first")
    finally:
        tiles.GLU_GRADIENT_TURNED = kept
