"""Two passes over a tensor: its amax, and the tensor in eight bits, as it is and transposed, from one read.

Legend: x [R, C], contiguous along C.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.fp8.triton_cast import byte_quad, inverse, scale_from, scaled, to_bytes
from s24compile.kernels.triton.values import stack, widen


@triton.jit
def finite_size(x):
    """|x| in fp32, 0 where x is Inf or NaN."""
    size = tl.abs(widen(x))
    return tl.where(size < float("inf"), size, 0.0)


@triton.jit
def raise_amax(amax, size):
    """amax = max(amax, the largest of `size`), atomically. Non-negative floats are ordered as their bits are."""
    most = tl.max(tl.max(size, 1), 0)
    tl.atomic_max(amax.to(tl.pointer_type(tl.int32)), most.to(tl.int32, bitcast=True))


@triton.jit
def amax_tiles(
    x, x_row, x_column, R, C, amax, TILES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Program i takes TILES tiles one below the other, tiles along C first. amax: fp32 [1], 0 or more before."""
    across = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    column = (program % across).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = (program // across).to(tl.int64) * (BLOCK_R * TILES) + tl.arange(0, BLOCK_R)
    at = x + row[:, None] * x_row + column[None, :] * x_column
    size = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for _ in tl.static_range(TILES):
        inside = (row < R)[:, None] & (column < C)[None, :]
        size = tl.maximum(size, finite_size(tl.load(at, mask=inside, other=0.0)))
        row += BLOCK_R
        at += BLOCK_R * x_row
    raise_amax(amax, size)


@triton.jit
def _four_rows(x, x_row, row, R, column, C, EVEN: tl.constexpr):
    """Rows 4p..4p+3 of a tile as four tensors [P, BLOCK_C], as stored."""
    if EVEN:
        return tl.load(x), tl.load(x + x_row), tl.load(x + 2 * x_row), tl.load(x + 3 * x_row)
    else:
        near = (column < C)[None, :]
        return (
            tl.load(x, mask=near & (row < R)[:, None], other=0.0),
            tl.load(x + x_row, mask=near & (row + 1 < R)[:, None], other=0.0),
            tl.load(x + 2 * x_row, mask=near & (row + 2 < R)[:, None], other=0.0),
            tl.load(x + 3 * x_row, mask=near & (row + 3 < R)[:, None], other=0.0),
        )


@triton.jit
def _store_row(at, x, row, R, column, C, KIND: tl.constexpr, EVEN: tl.constexpr):
    if EVEN:
        tl.store(at, to_bytes(x, KIND))
    else:
        tl.store(at, to_bytes(x, KIND), mask=(row < R)[:, None] & (column < C)[None, :])


@triton.jit
def quantise_tiles(
    x, x_row, x_column, R, C, amax, along, along_pitch, across, across_pitch, descale,
    ALONG: tl.constexpr, ACROSS: tl.constexpr, EVEN: tl.constexpr, WORDS: tl.constexpr, KIND: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Program (tile of R, tile of C), tiles of C first. along: bytes [R, C]; across: bytes [C, R].

    WORDS: R is a multiple of 4, so that four rows are one word of `across`, and only words are transposed.
    """
    tiles = tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    scale = scale_from(tl.load(amax), 1.0, KIND)
    if program == 0:
        tl.store(descale, inverse(scale))
    first = (program // tiles).to(tl.int64) * BLOCK_R
    row = first + 4 * tl.arange(0, BLOCK_R // 4)
    column = (program % tiles).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = x + row[:, None] * x_row + column[None, :] * x_column
    a, b, c, d = _four_rows(at, x_row, row, R, column, C, EVEN)
    a, b, c, d = scaled(widen(a), scale), scaled(widen(b), scale), scaled(widen(c), scale), scaled(widen(d), scale)
    if ALONG:
        to = along + row[:, None] * along_pitch + column[None, :]
        _store_row(to, a, row, R, column, C, KIND, EVEN)
        _store_row(to + along_pitch, b, row + 1, R, column, C, KIND, EVEN)
        _store_row(to + 2 * along_pitch, c, row + 2, R, column, C, KIND, EVEN)
        _store_row(to + 3 * along_pitch, d, row + 3, R, column, C, KIND, EVEN)
    if ACROSS:
        if WORDS:
            words = tl.permute(byte_quad(a, b, c, d, KIND), (1, 0))
            place = first // 4 + tl.arange(0, BLOCK_R // 4)
            to = across.to(tl.pointer_type(tl.uint32)) + column[:, None] * (across_pitch // 4) + place[None, :]
            if EVEN:
                tl.store(to, words)
            else:
                tl.store(to, words, mask=(column < C)[:, None] & (4 * place < R)[None, :])
        else:
            bytes = stack(to_bytes(a, KIND), to_bytes(b, KIND), to_bytes(c, KIND), to_bytes(d, KIND))
            bytes = tl.reshape(tl.permute(bytes, (1, 0, 2)), (BLOCK_C, BLOCK_R))
            place = first + tl.arange(0, BLOCK_R)
            to = across + column[:, None] * across_pitch + place[None, :]
            tl.store(to, bytes, mask=(column < C)[:, None] & (place < R)[None, :])
