"""Writing the 2:4 formats from Triton: pairs of kept 16-bit values, and whole 64 x 64 metadata atoms.

A tile is held as [P, Q] tensors, one per row or column of a 4x4 block (P, Q count blocks), so that everything about
a group is register arithmetic; only the stores change layout. kernels/format.py draws the formats.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
"""Under TRITON_INTERPRET=1 there is no PTX; device functions with assembly say the same in plain operations."""


@triton.jit
def quarters(x, P: tl.constexpr, Q: tl.constexpr):
    """Splits x [P, 4Q] into its four columns modulo 4, each [P, Q]."""
    return fourths(tl.reshape(x, (P, Q, 4)))


@triton.jit
def fourths(x):
    """Splits x [A, B, 4] into four [A, B]."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def eighths(x):
    """Splits x [A, B, 8] into eight [A, B]."""
    even, odd = tl.split(tl.reshape(x, (x.shape[0], x.shape[1], 2, 2, 2)))
    even_low, even_high = tl.split(even)
    odd_low, odd_high = tl.split(odd)
    x0, x4 = tl.split(even_low)
    x2, x6 = tl.split(even_high)
    x1, x5 = tl.split(odd_low)
    x3, x7 = tl.split(odd_high)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def anchored(index, x):
    """index (int32), in the layout of the fp32 x of its shape.

    Without it the compiler computes what follows from an index in a layout of its own, and converts the results
    through shared memory. x is not used: no instruction comes of this.
    """
    if INTERPRETED:
        return index
    else:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,f", [index, x], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def stack(a, b, c, d):
    """Stacks four [P, Q] tensors into [P, Q, 4]."""
    joined = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(joined, (a.shape[0], a.shape[1], 4))


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """x rounded to DTYPE, to nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16 and x.dtype == tl.float32:  # noqa: SIM300
        # The interpreter rounds ties and carries wrongly (seen in Triton 3.9).
        word = x.to(tl.uint32, bitcast=True)
        rounded = tl.where(x == x, (word + 0x7FFF + ((word >> 16) & 1)) >> 16, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    elif DTYPE == tl.bfloat16 and x.dtype == tl.float32:  # noqa: SIM300
        # Two at once: LLVM converts one by one, in the slow unit (16 a clock) instead of the fast one.
        return tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        return x.to(DTYPE)


@triton.jit
def bits(x, DTYPE: tl.constexpr):
    """x rounded to the 16-bit DTYPE, as the low half of a uint32."""
    return narrow(x, DTYPE).to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def widen(x):
    """x in fp32."""
    if x.dtype == tl.bfloat16 and not INTERPRETED:
        # Opaque, so that LLVM keeps |x| a float operation: it would mask the sign out of the bits, at an
        # instruction each, where the hardware takes |x| as an operand for nothing.
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [x], dtype=tl.float32, is_pure=True, pack=2
        )
    else:
        return x.to(tl.float32)


@triton.jit
def pick(a, b, c, d, selector):
    """The two kept of four 16-bit values (uint32 each) as one uint32, the first in the low half.

    selector: four nibbles, the byte numbers in a | b << 16 | c << 32 | d << 48 of the result's bytes.
    """
    low = a | (b << 16)
    high = c | (d << 16)
    if INTERPRETED:
        both = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
        first = (both >> ((selector & 6).to(tl.uint64) * 8)) & 0xFFFF
        second = (both >> (((selector >> 8) & 6).to(tl.uint64) * 8)) & 0xFFFF
        return (first | (second << 16)).to(tl.uint32)
    else:
        # One byte permutation instead of four comparisons and four selections.
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def lookup(at):
    """What pointers to int32 or uint8 point at, as uint32, in their own layout."""
    if INTERPRETED:
        return tl.load(at).to(tl.uint32)
    else:
        # tl.load would choose a layout made for long contiguous rows and convert everything computed from it.
        LOAD: tl.constexpr = (
            "ld.global.nc.u8 $0, [$1];" if at.dtype.element_ty == tl.uint8 else "ld.global.nc.b32 $0, [$1];"
        )
        return tl.inline_asm_elementwise(LOAD, "=r,l", [at.to(tl.uint64)], dtype=tl.uint32, is_pure=True, pack=1)


@triton.jit
def store_pairs(values, pitch, rows, columns, row, column, x0, x1, x2, x3, ALONG: tl.constexpr):
    """Stores a tile of packed values, given as pairs x0..x3 (uint32, [P, Q]).

    xi belongs to operand row `row` + 4p + i with pairs along Q (ALONG), or to row `row` + 4q + i with pairs along P.
    column: the tile's first column of pairs. pitch, columns: in pairs; columns counts the pitch's padding, which is
    written too. row, column: int64.
    """
    P: tl.constexpr = x0.shape[0]
    Q: tl.constexpr = x0.shape[1]
    if ALONG:
        tile = tl.reshape(tl.permute(stack(x0, x1, x2, x3), (0, 2, 1)), (4 * P, Q))
    else:
        tile = tl.reshape(tl.permute(stack(x0, x1, x2, x3), (1, 2, 0)), (4 * Q, P))
    at_row = row + tl.arange(0, tile.shape[0])
    at_column = column + tl.arange(0, tile.shape[1])
    at = values.to(tl.pointer_type(tl.uint32)) + at_row[:, None] * pitch + at_column[None, :]
    tl.store(at, tile, mask=(at_row < rows)[:, None] & (at_column < columns)[None, :])


@triton.jit
def store_metadata(metadata, k_stride, k_atoms, m_atoms, k_atom, m_atom, low, high, ALONG: tl.constexpr):
    """Stores the codes of a tile as sm90 16-bit metadata: whole atoms of 64 rows x 64 columns.

    low = c0 | c1 << 16, high = c2 | c3 << 16 (uint32, [P, Q]); ci is the code of operand row 4p + i with groups along
    Q (ALONG), or of row 4q + i with groups along P. (k_atom, m_atom): the tile's first atom, int64. uint16 index in
    an atom, of row m0 + 8*m1 + 16*m2 and 16-column chunk k1 + 2*k2: m1 + 2*k2 + 4*m0 + 32*k1 + 64*m2.
    k_stride: elements from one column of atoms to the next.
    """
    P: tl.constexpr = low.shape[0]
    Q: tl.constexpr = low.shape[1]
    if ALONG:
        shift = ((tl.arange(0, Q) % 4) * 4).to(tl.uint32)[None, :]
        low = tl.sum(tl.reshape(low << shift, (P, Q // 4, 4)), 2)
        high = tl.sum(tl.reshape(high << shift, (P, Q // 4, 4)), 2)
    else:
        shift = ((tl.arange(0, P) % 4) * 4).to(tl.uint32)[:, None]
        low = tl.sum(tl.reshape(low << shift, (P // 4, 4, Q)), 1)
        high = tl.sum(tl.reshape(high << shift, (P // 4, 4, Q)), 1)
    chunks = stack(low & 0xFFFF, low >> 16, high & 0xFFFF, high >> 16).to(tl.uint16)
    K: tl.constexpr = Q // 16 if ALONG else P // 16
    M: tl.constexpr = P // 16 if ALONG else Q // 16
    if ALONG:  # [m2, m1, m0 >> 2, k atom, k2, k1, m0 & 3]
        chunks = tl.permute(tl.reshape(chunks, (M * 4, 2, 2, K, 2, 2, 4)), (3, 0, 5, 2, 6, 4, 1))
    else:  # [k atom, k2, k1, m2, m1, m0 >> 2, m0 & 3]
        chunks = tl.permute(tl.reshape(chunks, (K, 2, 2, M * 4, 2, 2, 4)), (0, 3, 2, 5, 6, 1, 4))
    _store_atoms(metadata, k_stride, k_atoms, m_atoms, k_atom, m_atom, tl.reshape(chunks, (K, M * 256)))


@triton.jit
def store_chunk_pairs(values, pitch, rows, columns, row, column, x0, x1, x2, x3, ALONG: tl.constexpr):
    """Stores packed values of chunks of 16, given as the pairs x0..x3 (uint32) of their four groups.

    xi is [rows, chunks] (ALONG) or [chunks, rows]. The rest as in `store_pairs`.
    """
    A: tl.constexpr = x0.shape[0]
    B: tl.constexpr = x0.shape[1]
    if ALONG:
        tile = tl.reshape(stack(x0, x1, x2, x3), (A, 4 * B))
    else:
        tile = tl.reshape(tl.permute(stack(x0, x1, x2, x3), (1, 0, 2)), (B, 4 * A))
    at_row = row + tl.arange(0, tile.shape[0])
    at_column = column + tl.arange(0, tile.shape[1])
    at = values.to(tl.pointer_type(tl.uint32)) + at_row[:, None] * pitch + at_column[None, :]
    tl.store(at, tile, mask=(at_row < rows)[:, None] & (at_column < columns)[None, :])


@triton.jit
def store_chunk_codes(metadata, k_stride, k_atoms, m_atoms, k_atom, m_atom, codes, ALONG: tl.constexpr):
    """Stores sm90 16-bit metadata given as whole cells: codes uint32 [rows, chunks] (ALONG) or [chunks, rows]."""
    K: tl.constexpr = (codes.shape[1] if ALONG else codes.shape[0]) // 4
    M: tl.constexpr = (codes.shape[0] if ALONG else codes.shape[1]) // 64
    cells = codes.to(tl.uint16)
    if ALONG:  # [m2, m1, m0, k atom, k2, k1]
        cells = tl.permute(tl.reshape(cells, (M * 4, 2, 8, K, 2, 2)), (3, 0, 5, 2, 4, 1))
    else:  # [k atom, k2, k1, m2, m1, m0]
        cells = tl.permute(tl.reshape(cells, (K, 2, 2, M * 4, 2, 8)), (0, 3, 2, 5, 1, 4))
    _store_atoms(metadata, k_stride, k_atoms, m_atoms, k_atom, m_atom, tl.reshape(cells, (K, M * 256)))


@triton.jit
def _store_atoms(metadata, k_stride, k_atoms, m_atoms, k_atom, m_atom, cells):
    """cells: uint16 [k atoms, 256 per m atom], in memory order."""
    column = k_atom + tl.arange(0, cells.shape[0])
    entry = m_atom * 256 + tl.arange(0, cells.shape[1])
    at = metadata.to(tl.pointer_type(tl.uint16)) + column[:, None] * k_stride + entry[None, :]
    tl.store(at, cells, mask=(column < k_atoms)[:, None] & (entry < m_atoms * 256)[None, :])
