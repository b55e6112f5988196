"""h = relu(z)^2 or relu(z), its two largest of four packed along F, and what it holds and drops: one read of z.

Legend: T tokens, F hidden width; z [T, F], 16 bits, row-major (ALONG) or column-major. A tile is held by the places of
a chunk of sixteen features: as eight words of two neighbours each, [tokens, chunks] (ALONG), or as sixteen tensors
[chunks, tokens].

h >= 0, so its bits order like the numbers, NaN above Inf. A key is those bits above 3 - place: no two are equal, a tie
goes to the lower place, and eight minima and maxima sort a group.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.rows import fetch, store_operand
from s24compile.kernels.triton.values import INTERPRETED, bits, fourths, widen


@triton.jit
def _scaled(z, kept, scale, ACT: tl.constexpr, KEEP: tl.constexpr):
    """h before it is rounded, of the fp32 z; activation/reference.py's steps, in its order."""
    r = tl.where(z <= 0, 0.0, z)
    h = r * r if ACT == "relu2" else r
    return h * (tl.where(kept != 0, scale, 0.0) if KEEP else scale)


@triton.jit
def _squared(words, ACT: tl.constexpr, DTYPE: tl.constexpr):
    """h of two neighbours in a word, where nothing scales it: the product of two 16-bit numbers is rounded once."""
    MAX: tl.constexpr = "max.NaN.bf16x2" if DTYPE == tl.bfloat16 else "max.NaN.f16x2"  # noqa: SIM300
    MUL: tl.constexpr = "mul.rn.bf16x2" if DTYPE == tl.bfloat16 else "mul.rn.f16x2"  # noqa: SIM300
    if ACT == "relu2":
        return tl.inline_asm_elementwise(
            "{ .reg .b32 r, o; mov.b32 o, 0; " + MAX + " r, $1, o; " + MUL + " $0, r, r; }",
            "=r,r", [words], dtype=tl.uint32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 o; mov.b32 o, 0; " + MAX + " $0, $1, o; }",
            "=r,r", [words], dtype=tl.uint32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def _wide(half, DTYPE: tl.constexpr):
    """A 16-bit number in the low half of a word, in fp32."""
    return widen(half.to(tl.uint16).to(DTYPE, bitcast=True))


@triton.jit
def _hidden_words(words, kept, scale, ACT: tl.constexpr, SCALED: tl.constexpr, KEEP: tl.constexpr, DTYPE: tl.constexpr):
    """h of two neighbours, rounded, in a word. kept: a byte each in the low half."""
    if SCALED or INTERPRETED:
        low = _scaled(_wide(words & 0xFFFF, DTYPE), kept & 0xFF, scale, ACT, KEEP)
        high = _scaled(_wide(words >> 16, DTYPE), (kept >> 8) & 0xFF, scale, ACT, KEEP)
        return bits(low, DTYPE) | (bits(high, DTYPE) << 16)
    else:
        return _squared(words, ACT, DTYPE)


@triton.jit
def _choose(k0, k1, k2, k3, DTYPE: tl.constexpr):
    """Of four keys: the kept pair; 3 - place of both, in either half; non-zeros, with 1 << 16 where more than two;
    the sum of what is dropped, and of all."""
    m, n = tl.maximum(k0, k1), tl.minimum(k0, k1)
    o, q = tl.maximum(k2, k3), tl.minimum(k2, k3)
    a, s = tl.maximum(m, o), tl.minimum(m, o)
    t, d = tl.maximum(n, q), tl.minimum(n, q)
    b, c = tl.maximum(s, t), tl.minimum(s, t)
    # With the places on top, the larger is what stands first.
    x, y = (a >> 16) | (a << 16), (b >> 16) | (b << 16)
    first, second = tl.maximum(x, y), tl.minimum(x, y)
    pair = (first & 0xFFFF) | (second << 16)
    places = (first >> 16) | (second & 0xFFFF0000)
    # The carry into the top bit says whether h > 0.
    over = (c + 0x7FFF0000) >> 31
    found = ((a + 0x7FFF0000) >> 31) + ((b + 0x7FFF0000) >> 31) + ((d + 0x7FFF0000) >> 31) + over * 0x10001
    dropped = tl.where(over != 0, _number(c, DTYPE) + _number(d, DTYPE), 0.0)
    return pair, places, found, dropped, (_number(a, DTYPE) + _number(b, DTYPE)) + dropped


@triton.jit
def _number(key, DTYPE: tl.constexpr):
    """The number whose key it is, in fp32."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        return (key & 0xFFFF0000).to(tl.float32, bitcast=True)
    else:
        return _wide(key >> 16, DTYPE)


@triton.jit
def _choose_words(low, high, DTYPE: tl.constexpr):
    """`_choose` of the group in two words of h."""
    return _choose((low << 16) | 3, (low & 0xFFFF0000) | 2, (high << 16) | 1, high & 0xFFFF0000, DTYPE)


@triton.jit
def _hidden_key(z, kept, place: tl.constexpr, scale, ACT: tl.constexpr, KEEP: tl.constexpr, DTYPE: tl.constexpr):
    """The key of one element."""
    return (bits(_scaled(widen(z), kept, scale, ACT, KEEP), DTYPE) << 16) | (3 - place)


@triton.jit
def _choose_rows(
    z, z_f, keep, keep_f, first, i: tl.constexpr, F, inside, scale,
    ACT: tl.constexpr, KEEP: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """`_choose` of group i of each chunk of a column-major tile. first: the first feature of each chunk [chunks, 1]."""
    z, keep, first = z + 4 * i * z_f, keep + 4 * i * keep_f, first + 4 * i
    z0, z1 = fetch(z, first, F, inside, EVEN), fetch(z + z_f, first + 1, F, inside, EVEN)
    z2, z3 = fetch(z + 2 * z_f, first + 2, F, inside, EVEN), fetch(z + 3 * z_f, first + 3, F, inside, EVEN)
    k0, k1, k2, k3 = 0, 0, 0, 0
    if KEEP:
        k0, k1 = fetch(keep, first, F, inside, EVEN), fetch(keep + keep_f, first + 1, F, inside, EVEN)
        k2 = fetch(keep + 2 * keep_f, first + 2, F, inside, EVEN)
        k3 = fetch(keep + 3 * keep_f, first + 3, F, inside, EVEN)
    return _choose(
        _hidden_key(z0, k0, 0, scale, ACT, KEEP, DTYPE), _hidden_key(z1, k1, 1, scale, ACT, KEEP, DTYPE),
        _hidden_key(z2, k2, 2, scale, ACT, KEEP, DTYPE), _hidden_key(z3, k3, 3, scale, ACT, KEEP, DTYPE), DTYPE,
    )  # fmt: skip


@triton.jit
def _by_block(x, ALONG: tl.constexpr):
    """Sums of a tile over its 64 tokens and blocks of four chunks, [blocks]."""
    chunks = tl.sum(x, 0 if ALONG else 1)
    return tl.sum(tl.reshape(chunks, (chunks.shape[0] // 4, 4)), 1)


@triton.jit
def _load_words(at, tokens, words, T, F, COUNT: tl.constexpr, EVEN: tl.constexpr):
    """COUNT words from each of `words`, of each token: [tokens, chunks, COUNT]. at: pointers [tokens, chunks]."""
    step = tl.arange(0, COUNT)[None, None, :]
    if EVEN:
        return tl.load(at[:, :, None] + step)
    else:
        inside = (tokens < T)[:, None, None] & (words[None, :, None] < F)
        return tl.load(at[:, :, None] + step, mask=inside, other=0)


@triton.jit
def pack_state(
    z, z_t, z_f, keep, keep_t, keep_f, scale, T, F, values, pitch, metadata, stride, tallies,
    ACT: tl.constexpr, SCALED: tl.constexpr, KEEP: tl.constexpr, ALONG: tl.constexpr, EVEN: tl.constexpr,
    FORMAT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Program (tile of 64 tokens, tile of F), tiles of F first. F a multiple of 16.

    keep: uint8 of the shape of z (KEEP). Where ALONG, rows of z and of keep are read in words: z_f = keep_f = 1, z_t is
    even and keep_t a multiple of 4. tallies: counts, fp32 [T/64, F/64, 5], see activation/reference.py.
    """
    tiles = tl.cdiv(F, BLOCK_F)
    program = tl.program_id(0)
    tile_t, tile_f = (program // tiles).to(tl.int64), (program % tiles).to(tl.int64)
    t0, f0 = tile_t * BLOCK_T, tile_f * BLOCK_F
    DTYPE: tl.constexpr = values.dtype.element_ty
    CHUNKS: tl.constexpr = BLOCK_F // 16
    tokens = t0 + tl.arange(0, BLOCK_T)
    if ALONG:
        chunks = f0 + 16 * tl.arange(0, CHUNKS)
        at = z.to(tl.pointer_type(tl.uint32)) + (tokens[:, None] * (z_t // 2) + chunks[None, :] // 2)
        w0, w1, w2, w3 = fourths(_load_words(at, tokens, chunks, T, F, 4, EVEN))
        w4, w5, w6, w7 = fourths(_load_words(at + 4, tokens, chunks, T, F, 4, EVEN))
        k0, k1, k2, k3 = w0, w0, w0, w0
        if KEEP:
            kept = keep.to(tl.pointer_type(tl.uint32)) + (tokens[:, None] * (keep_t // 4) + chunks[None, :] // 4)
            k0, k1, k2, k3 = fourths(_load_words(kept, tokens, chunks, T, F, 4, EVEN))
        w0 = _hidden_words(w0, k0, scale, ACT, SCALED, KEEP, DTYPE)
        w1 = _hidden_words(w1, k0 >> 16, scale, ACT, SCALED, KEEP, DTYPE)
        w2 = _hidden_words(w2, k1, scale, ACT, SCALED, KEEP, DTYPE)
        w3 = _hidden_words(w3, k1 >> 16, scale, ACT, SCALED, KEEP, DTYPE)
        w4 = _hidden_words(w4, k2, scale, ACT, SCALED, KEEP, DTYPE)
        w5 = _hidden_words(w5, k2 >> 16, scale, ACT, SCALED, KEEP, DTYPE)
        w6 = _hidden_words(w6, k3, scale, ACT, SCALED, KEEP, DTYPE)
        w7 = _hidden_words(w7, k3 >> 16, scale, ACT, SCALED, KEEP, DTYPE)
        p0, e0, n0, m0, s0 = _choose_words(w0, w1, DTYPE)
        p1, e1, n1, m1, s1 = _choose_words(w2, w3, DTYPE)
        p2, e2, n2, m2, s2 = _choose_words(w4, w5, DTYPE)
        p3, e3, n3, m3, s3 = _choose_words(w6, w7, DTYPE)
    else:
        first = f0 + 16 * tl.arange(0, CHUNKS)[:, None]
        inside = (tokens < T)[None, :]
        at = z + first * z_f + tokens[None, :] * z_t
        kept = keep + first * keep_f + tokens[None, :] * keep_t
        p0, e0, n0, m0, s0 = _choose_rows(at, z_f, kept, keep_f, first, 0, F, inside, scale, ACT, KEEP, EVEN, DTYPE)
        p1, e1, n1, m1, s1 = _choose_rows(at, z_f, kept, keep_f, first, 1, F, inside, scale, ACT, KEEP, EVEN, DTYPE)
        p2, e2, n2, m2, s2 = _choose_rows(at, z_f, kept, keep_f, first, 2, F, inside, scale, ACT, KEEP, EVEN, DTYPE)
        p3, e3, n3, m3, s3 = _choose_rows(at, z_f, kept, keep_f, first, 3, F, inside, scale, ACT, KEEP, EVEN, DTYPE)

    found = _by_block(((n0 + n1) + (n2 + n3)).to(tl.int32), ALONG)
    BLOCKS: tl.constexpr = CHUNKS // 4
    block = tile_f * BLOCKS + tl.arange(0, BLOCKS)
    blocks = (F + 63) // 64
    here = block < blocks
    out = tallies + (tile_t * blocks + block) * 5
    elements = tl.minimum(T - t0, 64) * tl.minimum(F - block * 64, 64)
    tl.store(out, elements.to(tl.float32), mask=here)
    tl.store(out + 1, (found & 0xFFFF).to(tl.float32), mask=here)
    tl.store(out + 2, (found >> 16).to(tl.float32), mask=here)
    tl.store(out + 3, _by_block((m0 + m1) + (m2 + m3), ALONG), mask=here)
    tl.store(out + 4, _by_block((s0 + s1) + (s2 + s3), ALONG), mask=here)
    # Nibbles of 3 - place of the first kept in the low half, of the second in the high one: code = first | second << 2.
    places = e0 + e1 * 16 + e2 * 256 + e3 * 4096
    codes = 0xFFFF - ((places & 0xFFFF) | ((places >> 16) << 2))
    store_operand(values, pitch, metadata, stride, F, T, t0, f0, p0, p1, p2, p3, codes, 0, ALONG, FORMAT)
