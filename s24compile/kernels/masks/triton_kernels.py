"""Sums over masks and weights: how many bytes differ, and the two products of S-STE's scale. One number a program.

A second, small sum adds the programs' numbers in torch: the result does not vary by run, as atomics would make it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.rows import largest_pair, two_of
from s24compile.kernels.triton.values import quarters, widen


@triton.jit
def count_differences(before, after, N, counts, BLOCK: tl.constexpr):
    """counts[i] = how many of bytes [i BLOCK, (i + 1) BLOCK) differ; int32. before, after: uint8 [N]."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < N
    x = tl.load(before + place, mask=inside, other=0)
    y = tl.load(after + place, mask=inside, other=0)
    tl.store(counts + tl.program_id(0), tl.sum((x != y).to(tl.int32), 0))


@triton.jit
def _kept_products(x, threshold):
    """(x S(x), S(x)^2) of a kept x, fp64; S(x) = sign(x) (|x| - threshold)."""
    size = tl.abs(x).to(tl.float64)
    shrunk = size - threshold
    return size * shrunk, shrunk * shrunk


@triton.jit
def scale_sums(
    w, w_row, w_column, R, C, totals, TURNED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """totals[i] = (<W, S(W)>, <S(W), S(W)>) of tile i of W [R, C], fp64; tiles along the columns first.

    TURNED: neighbours of a column lie next to each other, so places of a group are loaded one after the other.
    """
    across = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    first_column = (program % across).to(tl.int64) * BLOCK_C
    if TURNED:
        column = first_column + 4 * tl.arange(0, BLOCK_C // 4)
        inside = (row < R)[:, None] & (column < C)[None, :]
        at = w + row[:, None] * w_row + column[None, :] * w_column
        x0 = tl.load(at, mask=inside, other=0.0)
        x1 = tl.load(at + w_column, mask=inside, other=0.0)
        x2 = tl.load(at + 2 * w_column, mask=inside, other=0.0)
        x3 = tl.load(at + 3 * w_column, mask=inside, other=0.0)
    else:
        column = first_column + tl.arange(0, BLOCK_C)
        inside = (row < R)[:, None] & (column < C)[None, :]
        at = w + row[:, None] * w_row + column[None, :] * w_column
        x0, x1, x2, x3 = quarters(tl.load(at, mask=inside, other=0.0), BLOCK_R, BLOCK_C // 4)
    x0, x1, x2, x3 = widen(x0), widen(x1), widen(x2), widen(x3)
    pair = largest_pair(x0, x1, x2, x3)
    first, second = two_of(x0, x1, x2, x3, pair)
    # The two that go are those of the complement.
    low, high = two_of(x0, x1, x2, x3, 5 - pair)
    threshold = tl.maximum(tl.abs(low), tl.abs(high)).to(tl.float64)
    product, norm = _kept_products(first, threshold)
    more_product, more_norm = _kept_products(second, threshold)
    at = totals + 2 * program.to(tl.int64)
    tl.store(at, tl.sum(product + more_product))
    tl.store(at + 1, tl.sum(norm + more_norm))
