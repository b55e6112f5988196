"""Philox4x32-10, the counter-based generator behind every random choice of a kernel. [Salmon et al., SC 2011]

A draw is a function of (seed, row, group) alone, so it depends on no tile shape, stride, device or launch order.
Draw of group j of row r (groups of four along the pruned dim; rows are the other dims, flattened)::

    key = (seed low 32 bits, seed high 32 bits)     counter = (j // 4, r low, r high, 0)
    word = philox(counter, key)[j % 4]              u = (word >> 8) * 2**-24        in [0, 1)

One call thus serves sixteen neighbours of a row.

The 32-bit arithmetic is done in int64 on the CPU's and the GPU's own integer ops. Bits above 32 are masked off only
where a later step reads them: products are kept whole ("dirty"), for xor and the next low half ignore them.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # Weyl increments of the key
_MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit words per counter.

    Args:
        counter: four int64 tensors of values < 2**32, broadcast against each other. Rounds run at the smallest
            shape that holds their operands, so a grid (j, r) costs eight full rounds, not ten.
        key: two 0-d int64 tensors of values < 2**32.

    Returns:
        Four int64 tensors of values < 2**32, of the broadcast shape (or smaller where an input does not reach it).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # int64 products wrap modulo 2**64, which keeps all the 64 bits of the unsigned product.
        low0, low1 = c0 * _M0, c2 * _M1
        c0 = ((low1 >> 32) ^ (c1 ^ k0)) & _MASK
        c2 = ((low0 >> 32) ^ (c3 ^ k1)) & _MASK
        c1, c3 = low1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1 & _MASK, c2, c3 & _MASK


def key_of(seed: Tensor) -> tuple[Tensor, Tensor]:
    """One-element int64 seed -> the two halves of the key, 0-d int64, without a host sync."""
    whole = seed.reshape(())
    return whole & _MASK, (whole >> 32) & _MASK


def uniforms(seed: Tensor, rows: Tensor, first_group: int, groups: int, *, rows_last: bool) -> Tensor:
    """The draws of groups [first_group, first_group + groups) of some rows.

    Args:
        seed: one int64 element.
        rows: int64 row numbers [R].
        first_group: a multiple of 4.
        rows_last: which of the two layouts to return, both contiguous; the draws are the same.

    Returns:
        fp32 in [0, 1): [groups, R] if `rows_last`, else [R, groups].
    """
    blocks = torch.arange(first_group // 4, (first_group + groups + 3) // 4, device=rows.device)
    if rows_last:
        blocks, dim = blocks[:, None], 1
    else:
        rows, dim = rows[:, None], 2
    words = philox4x32((blocks, rows & _MASK, rows >> 32, torch.zeros_like(rows)), key_of(seed))
    # fp32 holds 24 bits exactly: the high 24 of each word.
    drawn = torch.stack([(word >> 8).to(torch.float32) for word in words], dim=dim).mul_(2.0**-24)
    if rows_last:
        return drawn.flatten(0, 1)[:groups]
    return drawn.flatten(1)[:, :groups]
