"""Masked decay by pattern numbers: grad += alpha w where the pattern prunes, one weight or many a launch.

Legend: V [R, C] a view of the weight whose last dim is contiguous where it can be; FLIPPED: V is the transpose of what
the patterns describe. Patterns: one number per 4x4 block, or per 1x4 group along the logical columns (ROWS).
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.values import lookup, narrow, widen


@triton.jit
def _kept(patterns, p_row, p_column, table, row, column, R, C, ROWS: tl.constexpr, FLIPPED: tl.constexpr):
    """Whether the pattern keeps each element (row [A, 1], column [1, B] of V)."""
    # Clamped, not masked: `lookup` has no mask. What lies outside is not stored.
    row = tl.minimum(row, R - 1)
    column = tl.minimum(column, C - 1)
    r4: tl.constexpr = 1 if ROWS and not FLIPPED else 4
    c4: tl.constexpr = 1 if ROWS and FLIPPED else 4
    number = lookup(patterns + (row // r4) * p_row + (column // c4) * p_column)
    along = row if FLIPPED else column
    if ROWS:
        # Bits of the six pairs, a nibble each: kernels/patterns.py.
        bits = tl.full(number.shape, 0xCA6953, tl.uint32) >> (4 * number)
        return ((bits >> (along % 4).to(tl.uint32)) & 1) != 0
    else:
        across = column if FLIPPED else row
        return ((lookup(table + number) >> (across % 4 * 4 + along % 4).to(tl.uint32)) & 1) != 0


@triton.jit
def decay_tile(
    grad, g_row, g_column, w, w_row, w_column, patterns, p_row, p_column, table, alpha, R, C, tile_r, tile_c,
    ROWS: tl.constexpr, FLIPPED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile. table: int32 by pattern number, bit 4 r + c where (r, c) is kept."""
    row = (tile_r.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R))[:, None]
    column = (tile_c.to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    inside = (row < R) & (column < C)
    at = grad + row * g_row + column * g_column
    weight = widen(tl.load(w + row * w_row + column * w_column, mask=inside, other=0.0))
    before = widen(tl.load(at, mask=inside, other=0.0))
    kept = _kept(patterns, p_row, p_column, table, row, column, R, C, ROWS, FLIPPED)
    after = before + tl.where(kept, 0.0, weight) * alpha
    tl.store(at, narrow(after, grad.dtype.element_ty), mask=inside)


@triton.jit
def decay_one(
    grad, g_row, g_column, w, w_row, w_column, patterns, p_row, p_column, table, alpha_at, R, C,
    ROWS: tl.constexpr, FLIPPED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One weight of any strides; tiles along V's columns first."""
    tiles = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    decay_tile(
        grad, g_row, g_column, w, w_row, w_column, patterns, p_row, p_column, table, tl.load(alpha_at), R, C,
        program // tiles, program % tiles, ROWS, FLIPPED, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@triton.jit
def decay_many(
    entries, owners, table, alpha_at, GRAD: tl.constexpr, WEIGHT: tl.constexpr,
    ROWS: tl.constexpr, FLIPPED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Many weights: program i works on tile i - first of entry owners[i]; decay/triton.py lists an entry's words."""
    entry = entries + tl.load(owners + tl.program_id(0)) * 10
    grad = tl.multiple_of(tl.load(entry).to(tl.pointer_type(GRAD)), 16)
    w = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(WEIGHT)), 16)
    patterns = tl.load(entry + 2).to(tl.pointer_type(tl.uint8))
    g_row, w_row = tl.multiple_of(tl.load(entry + 3), 8), tl.multiple_of(tl.load(entry + 4), 8)
    p_pitch = tl.load(entry + 5)
    R, C = tl.load(entry + 6), tl.multiple_of(tl.load(entry + 7), 8)
    tiles = tl.load(entry + 8)
    tile = tl.program_id(0) - tl.load(entry + 9)
    decay_tile(
        grad, g_row, 1, w, w_row, 1, patterns, 1 if FLIPPED else p_pitch, p_pitch if FLIPPED else 1,
        table, tl.load(alpha_at), R, C, tile // tiles, tile % tiles, ROWS, FLIPPED, BLOCK_R, BLOCK_C,
    )  # fmt: skip
