"""The backward's one pass over memory: dP and p in; dZ on p's places, packed MVUE(dZ^T) and packed MVUE(p^T) out.

Legend: T tokens, F hidden width. A thread works on a patch of sixteen tokens, which share a call of Philox, by the four
features of a group along F: what it loads of p and of dP lies in words, and nothing moves between threads before the
packed results are stored. So a tile is a [chunks, groups] tensor, one element a thread, for each token of a chunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from s24compile.kernels.triton.rows import store_operand
from s24compile.kernels.triton.sample import draws, sample, uniform
from s24compile.kernels.triton.values import INTERPRETED, anchored, bits, eighths, permute, stack, widen

TINY = tl.constexpr(2.0**-100)
"""activation/reference.py's."""


@triton.jit
def _number(word, HIGH: tl.constexpr, DTYPE: tl.constexpr):
    """The 16-bit number in one half of a word, in fp32."""
    if DTYPE == tl.bfloat16 and not INTERPRETED:  # noqa: SIM300
        # Opaque for the reason that `widen` gives.
        MOVE: tl.constexpr = "and.b32 $0, $1, 0xffff0000;" if HIGH else "shl.b32 $0, $1, 16;"
        return tl.inline_asm_elementwise(MOVE, "=r,r", [word], dtype=tl.float32, is_pure=True, pack=1)
    else:
        half = (word >> 16) if HIGH else (word & 0xFFFF)
        return widen(half.to(tl.uint16).to(DTYPE, bitcast=True))


@triton.jit
def _word(low, high, DTYPE: tl.constexpr):
    """Two fp32 numbers rounded to DTYPE, in a word."""
    if INTERPRETED:
        return bits(low, DTYPE) | (bits(high, DTYPE) << 16)
    else:
        TO: tl.constexpr = "bf16x2" if DTYPE == tl.bfloat16 else "f16x2"  # noqa: SIM300
        return tl.inline_asm_elementwise(
            "cvt.rn." + TO + ".f32 $0, $2, $1;", "=r,f,f", [low, high], dtype=tl.uint32, is_pure=True, pack=1
        )


@triton.jit
def _twice_root(x):
    """2 sqrt(x) of x >= TINY, Inf or NaN, as 2 * tl.sqrt_rn(x) rounds it."""
    if INTERPRETED:
        return 2.0 * tl.sqrt_rn(x)
    else:
        # The compiler's own square root branches for numbers that cannot come here, and branches keep the sixteen
        # tokens of a thread from overlapping. One step of Newton's rounds correctly; the maximum takes Inf to Inf,
        # where that step gives NaN, and is below the root of what is finite.
        return tl.inline_asm_elementwise(
            "{ .reg .f32 y, t, n, r, w; rsqrt.approx.ftz.f32 y, $1; mul.rn.f32 t, $1, y; neg.f32 n, t; "
            "fma.rn.f32 r, n, t, $1; add.rn.f32 t, t, t; fma.rn.f32 w, r, y, t; "
            "mul.rn.f32 t, $1, 0f1F800000; max.f32 $0, w, t; }",
            "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip


@triton.jit
def _derived(d, p, scale, ACT: tl.constexpr, SCALED: tl.constexpr):
    """dz = d act'(z) from p = scale act(z); activation/reference.py's steps."""
    if ACT == "relu2":
        square = p * scale if SCALED else p
        return tl.where(square < TINY, 0.0, d * _twice_root(square))
    else:
        return tl.where(p <= 0, 0.0, d * scale if SCALED else d)


@triton.jit
def _gradient(kept, d0, d1, code, scale, ACT: tl.constexpr, SCALED: tl.constexpr, DTYPE: tl.constexpr):
    """The pair of dZ of a group: kept is p's pair, (d0, d1) the words of its four dP."""
    # Bytes 2i, 2i + 1, 2j, 2j + 1 of the two words, for code = i | j << 2.
    d = permute(d0, d1, 0x1010 + (code & 3) * 0x22 + (code >> 2) * 0x2200)
    low, high = _number(kept, False, DTYPE), _number(kept, True, DTYPE)
    x = _derived(_number(d, False, DTYPE), low, scale, ACT, SCALED)
    y = _derived(_number(d, True, DTYPE), high, scale, ACT, SCALED)
    return _word(x, y, DTYPE)


@triton.jit
def _spread(pair, code):
    """A pair on its places: two words of a group's four numbers, zeros elsewhere."""
    # A byte for each place: bytes 1, 0 of the pair at the first, 3, 2 at the second, else two of the zero word.
    places = 0x44444444 ^ (tl.full(code.shape, 0x54, tl.uint32) << (8 * (code & 3)))
    places = places ^ (tl.full(code.shape, 0x76, tl.uint32) << (8 * (code >> 2)))
    nothing = tl.zeros(pair.shape, tl.uint32)
    return permute(pair, nothing, places & 0xFFFF), permute(pair, nothing, places >> 16)


@triton.jit
def _load_row(dp, dp_t, i: tl.constexpr, token, T, inside, EVEN: tl.constexpr):
    """The two words of dP of token i of each chunk. dp: pointers to words, dp_t: words from one token to the next."""
    at = dp[:, :, None] + (i * dp_t + tl.arange(0, 2)[None, None, :])
    if EVEN:
        return tl.split(tl.load(at))
    else:
        return tl.split(tl.load(at, mask=(inside & (token + i < T))[:, :, None], other=0))


@triton.jit
def _load_column(dp, dp_f, j: tl.constexpr, token, T, inside, EVEN: tl.constexpr):
    """The sixteen tokens of dP of feature j of each group, in eight words. dp_f: words from a feature to the next."""
    place = tl.arange(0, 8)[None, None, :]
    at = dp[:, :, None] + (j * dp_f + place)
    if EVEN:
        return eighths(tl.load(at))
    else:
        return eighths(tl.load(at, mask=inside[:, :, None] & (token[:, :, None] + 2 * place < T), other=0))


@triton.jit
def _row_of(a, b, c, d, i: tl.constexpr):
    """Token i's two words, out of what `_load_column` gave for the four features."""
    if i % 2 == 0:
        return (a[i // 2] & 0xFFFF) | (b[i // 2] << 16), (c[i // 2] & 0xFFFF) | (d[i // 2] << 16)
    else:
        return (a[i // 2] >> 16) | (b[i // 2] & 0xFFFF0000), (c[i // 2] >> 16) | (d[i // 2] & 0xFFFF0000)


@triton.jit
def _load_pair(at, pitch, i: tl.constexpr, token, T, inside, EVEN: tl.constexpr):
    """The kept pair of token i of each chunk."""
    if EVEN:
        return tl.load(at + i * pitch)
    else:
        return tl.load(at + i * pitch, mask=inside & (token + i < T), other=0)


@triton.jit
def _cells(metadata, stride, token, feature, FORMAT: tl.constexpr):
    """Where the metadata of a chunk's first token lies: a word for tokens m and m + 8. kernels/metadata.py draws it.

    token: a multiple of 16.
    """
    at = metadata.to(tl.pointer_type(tl.uint32))
    chunk = feature // 16
    if FORMAT == "sm80":
        return at + (chunk >> 1).to(tl.int64) * (stride // 2) + (token // 32 * 32 + (token // 16 & 1) * 2 + (chunk & 1))
    else:
        # [m2][k1][m0][k2][m1] of an atom, in halves of a word.
        within = 32 * (token // 16 & 3) + 16 * (chunk & 1) + (chunk >> 1 & 1)
        return at + (chunk >> 2).to(tl.int64) * (stride // 2) + (token // 64 * 128 + within)


@triton.jit
def _token(
    rows, pairs, words, i: tl.constexpr, shift, dz, pitch, token, T, inside, scale,
    ACT: tl.constexpr, SCALED: tl.constexpr, EVEN: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Stores the pair of dZ of token i of each chunk; returns the words of dZ and of p on their places."""
    code = (words[i % 8] >> (shift + (16 if i >= 8 else 0))) & 15
    pair = _gradient(pairs[i], rows[i][0], rows[i][1], code, scale, ACT, SCALED, DTYPE)
    if EVEN:
        tl.store(dz + i * pitch, pair)
    else:
        tl.store(dz + i * pitch, pair, mask=inside & (token + i < T))
    z0, z1 = _spread(pair, code)
    p0, p1 = _spread(pairs[i], code)
    return z0, z1, p0, p1


@triton.jit
def _estimate(a, b, c, d, FIRST: tl.constexpr, word0, word1, word2, word3, DTYPE: tl.constexpr):
    """The MVUE along four tokens of each of the four features. a..d: what `_token` gave; FIRST: 0 for dZ, 2 for p.

    Returns kept pairs and codes of the features, and their sums over the four tokens.
    """
    x0, x1, x2, x3 = (
        _number(a[FIRST], False, DTYPE), _number(b[FIRST], False, DTYPE),
        _number(c[FIRST], False, DTYPE), _number(d[FIRST], False, DTYPE),
    )  # fmt: skip
    q0, e0 = sample(x0, x1, x2, x3, uniform(word0), DTYPE)
    s0 = (x0 + x1) + (x2 + x3)
    x0, x1, x2, x3 = (
        _number(a[FIRST], True, DTYPE), _number(b[FIRST], True, DTYPE),
        _number(c[FIRST], True, DTYPE), _number(d[FIRST], True, DTYPE),
    )  # fmt: skip
    q1, e1 = sample(x0, x1, x2, x3, uniform(word1), DTYPE)
    s1 = (x0 + x1) + (x2 + x3)
    x0, x1, x2, x3 = (
        _number(a[FIRST + 1], False, DTYPE), _number(b[FIRST + 1], False, DTYPE),
        _number(c[FIRST + 1], False, DTYPE), _number(d[FIRST + 1], False, DTYPE),
    )  # fmt: skip
    q2, e2 = sample(x0, x1, x2, x3, uniform(word2), DTYPE)
    s2 = (x0 + x1) + (x2 + x3)
    x0, x1, x2, x3 = (
        _number(a[FIRST + 1], True, DTYPE), _number(b[FIRST + 1], True, DTYPE),
        _number(c[FIRST + 1], True, DTYPE), _number(d[FIRST + 1], True, DTYPE),
    )  # fmt: skip
    q3, e3 = sample(x0, x1, x2, x3, uniform(word3), DTYPE)
    s3 = (x0 + x1) + (x2 + x3)
    return (q0, q1, q2, q3), (e0, e1, e2, e3), (s0, s1, s2, s3)


@triton.jit
def _load_cell(at, inside, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(at)
    else:
        return tl.load(at, mask=inside, other=0)


@triton.jit
def _draw(seed_at, chunk, row, DRAWS: tl.constexpr):
    """The random words of the four features, for the four groups of tokens each."""
    if DRAWS:
        seed = tl.load(seed_at)
        low = draws(seed, chunk, row), draws(seed, chunk, row + 1)
        return low[0], low[1], draws(seed, chunk, row + 2), draws(seed, chunk, row + 3)
    else:
        nothing = (chunk, chunk, chunk, chunk)
        return nothing, nothing, nothing, nothing


@triton.jit
def _four(
    rows, pairs, words, i: tl.constexpr, shift, dz, pitch, token, T, inside, scale, w,
    ACT: tl.constexpr, SCALED: tl.constexpr, OF_DZ: tl.constexpr, OF_P: tl.constexpr, SUMS: tl.constexpr,
    EVEN: tl.constexpr, FORMAT: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Tokens i..i + 3 of each chunk: pairs, codes and sums of dZ by feature, then pairs and codes of p."""
    a = _token(rows, pairs, words, i, shift, dz, pitch, token, T, inside, scale, ACT, SCALED, EVEN, FORMAT, DTYPE)
    b = _token(rows, pairs, words, i + 1, shift, dz, pitch, token, T, inside, scale, ACT, SCALED, EVEN, FORMAT, DTYPE)
    c = _token(rows, pairs, words, i + 2, shift, dz, pitch, token, T, inside, scale, ACT, SCALED, EVEN, FORMAT, DTYPE)
    d = _token(rows, pairs, words, i + 3, shift, dz, pitch, token, T, inside, scale, ACT, SCALED, EVEN, FORMAT, DTYPE)
    q = (shift, shift, shift, shift)
    e, s, r, g = q, q, q, q
    if OF_DZ or SUMS:
        q, e, s = _estimate(a, b, c, d, 0, w[0], w[1], w[2], w[3], DTYPE)
    if OF_P:
        r, g, _ = _estimate(a, b, c, d, 2, w[0], w[1], w[2], w[3], DTYPE)
    return q, e, s, r, g


@triton.jit
def _by_feature(x):
    """Four [chunks, groups] tensors, one for each feature of a group, as [chunks, features]."""
    return tl.reshape(stack(x[0], x[1], x[2], x[3]), (x[0].shape[0], 4 * x[0].shape[1]))


@triton.jit
def _codes(a, b, c, d, j: tl.constexpr):
    """A chunk's cell of feature j, from the codes of its four groups of tokens."""
    return a[j] | (b[j] << 4) | (c[j] << 8) | (d[j] << 12)


@triton.jit
def backward_pack(
    dp, dp_t, dp_f, kept, kept_pitch, cells, cell_stride, scale, T, F, seed_at, dz, dz_pitch,
    dz_values, p_values, pitch, dz_metadata, p_metadata, stride, sums,
    ACT: tl.constexpr, SCALED: tl.constexpr, COLUMNS: tl.constexpr, OF_DZ: tl.constexpr, OF_P: tl.constexpr,
    SUMS: tl.constexpr, EVEN: tl.constexpr, FORMAT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Program (tile of T, tile of F), tiles of F first. F a multiple of 16; the tile's extents multiples of 64.

    dp: row-major, dp_f = 1 and dp_t even, or column-major (COLUMNS), dp_t = 1 and dp_f even. kept, cells: p's values
    and metadata. dz: values of dZ. dz_values, p_values, ...: the operands [F, T], of one pitch (OF_DZ, OF_P).
    sums: fp32 [tiles of T, F], column sums of dZ (SUMS).
    """
    tiles = tl.cdiv(F, BLOCK_F)
    program = tl.program_id(0)
    tile_t = (program // tiles).to(tl.int64)
    t0, f0 = tile_t * BLOCK_T, (program % tiles).to(tl.int64) * BLOCK_F
    DTYPE: tl.constexpr = dz.dtype.element_ty
    CHUNKS: tl.constexpr = BLOCK_T // 16
    GROUPS: tl.constexpr = BLOCK_F // 4
    token = tl.broadcast_to((t0 + 16 * tl.arange(0, CHUNKS))[:, None], (CHUNKS, GROUPS))
    feature = tl.broadcast_to((f0 + 4 * tl.arange(0, GROUPS))[None, :], (CHUNKS, GROUPS))
    inside = feature < F

    # All loads come before the first store: no load may pass a store that could be to the same place.
    d_at = dp.to(tl.pointer_type(tl.uint32))
    if COLUMNS:
        d_at += feature * (dp_f // 2) + token // 2
        step = dp_f // 2
        a = _load_column(d_at, step, 0, token, T, inside, EVEN)
        b = _load_column(d_at, step, 1, token, T, inside, EVEN)
        c = _load_column(d_at, step, 2, token, T, inside, EVEN)
        d = _load_column(d_at, step, 3, token, T, inside, EVEN)
        rows = (
            _row_of(a, b, c, d, 0), _row_of(a, b, c, d, 1), _row_of(a, b, c, d, 2), _row_of(a, b, c, d, 3),
            _row_of(a, b, c, d, 4), _row_of(a, b, c, d, 5), _row_of(a, b, c, d, 6), _row_of(a, b, c, d, 7),
            _row_of(a, b, c, d, 8), _row_of(a, b, c, d, 9), _row_of(a, b, c, d, 10), _row_of(a, b, c, d, 11),
            _row_of(a, b, c, d, 12), _row_of(a, b, c, d, 13), _row_of(a, b, c, d, 14), _row_of(a, b, c, d, 15),
        )  # fmt: skip
    else:
        d_at += token * (dp_t // 2) + feature // 2
        step = dp_t // 2
        rows = (
            _load_row(d_at, step, 0, token, T, inside, EVEN), _load_row(d_at, step, 1, token, T, inside, EVEN),
            _load_row(d_at, step, 2, token, T, inside, EVEN), _load_row(d_at, step, 3, token, T, inside, EVEN),
            _load_row(d_at, step, 4, token, T, inside, EVEN), _load_row(d_at, step, 5, token, T, inside, EVEN),
            _load_row(d_at, step, 6, token, T, inside, EVEN), _load_row(d_at, step, 7, token, T, inside, EVEN),
            _load_row(d_at, step, 8, token, T, inside, EVEN), _load_row(d_at, step, 9, token, T, inside, EVEN),
            _load_row(d_at, step, 10, token, T, inside, EVEN), _load_row(d_at, step, 11, token, T, inside, EVEN),
            _load_row(d_at, step, 12, token, T, inside, EVEN), _load_row(d_at, step, 13, token, T, inside, EVEN),
            _load_row(d_at, step, 14, token, T, inside, EVEN), _load_row(d_at, step, 15, token, T, inside, EVEN),
        )  # fmt: skip
    k_at, k_step = kept.to(tl.pointer_type(tl.uint32)) + (token * (kept_pitch // 2) + feature // 4), kept_pitch // 2
    pairs = (
        _load_pair(k_at, k_step, 0, token, T, inside, EVEN), _load_pair(k_at, k_step, 1, token, T, inside, EVEN),
        _load_pair(k_at, k_step, 2, token, T, inside, EVEN), _load_pair(k_at, k_step, 3, token, T, inside, EVEN),
        _load_pair(k_at, k_step, 4, token, T, inside, EVEN), _load_pair(k_at, k_step, 5, token, T, inside, EVEN),
        _load_pair(k_at, k_step, 6, token, T, inside, EVEN), _load_pair(k_at, k_step, 7, token, T, inside, EVEN),
        _load_pair(k_at, k_step, 8, token, T, inside, EVEN), _load_pair(k_at, k_step, 9, token, T, inside, EVEN),
        _load_pair(k_at, k_step, 10, token, T, inside, EVEN), _load_pair(k_at, k_step, 11, token, T, inside, EVEN),
        _load_pair(k_at, k_step, 12, token, T, inside, EVEN), _load_pair(k_at, k_step, 13, token, T, inside, EVEN),
        _load_pair(k_at, k_step, 14, token, T, inside, EVEN), _load_pair(k_at, k_step, 15, token, T, inside, EVEN),
    )  # fmt: skip
    c_at = _cells(cells, cell_stride, token, feature, FORMAT)
    C: tl.constexpr = 4 if FORMAT == "sm80" else 2
    whole = inside & (token < T)
    words = (
        _load_cell(c_at, whole, EVEN), _load_cell(c_at + C, whole, EVEN), _load_cell(c_at + 2 * C, whole, EVEN),
        _load_cell(c_at + 3 * C, whole, EVEN), _load_cell(c_at + 4 * C, whole, EVEN),
        _load_cell(c_at + 5 * C, whole, EVEN), _load_cell(c_at + 6 * C, whole, EVEN),
        _load_cell(c_at + 7 * C, whole, EVEN),
    )  # fmt: skip

    shift = (feature % 16).to(tl.uint32)  # a nibble for each group
    z_at = dz.to(tl.pointer_type(tl.uint32)) + (token * (dz_pitch // 2) + feature // 4)
    z_step = dz_pitch // 2
    anchor = _number(pairs[0], False, DTYPE)
    row, chunk = anchored(feature.to(tl.int32), anchor), anchored((token // 16).to(tl.int32), anchor)
    w0, w1, w2, w3 = _draw(seed_at, chunk, row, OF_DZ or OF_P)
    q0, e0, s0, r0, g0 = _four(
        rows, pairs, words, 0, shift, z_at, z_step, token, T, inside, scale, (w0[0], w1[0], w2[0], w3[0]),
        ACT, SCALED, OF_DZ, OF_P, SUMS, EVEN, FORMAT, DTYPE,
    )  # fmt: skip
    q1, e1, s1, r1, g1 = _four(
        rows, pairs, words, 4, shift, z_at, z_step, token, T, inside, scale, (w0[1], w1[1], w2[1], w3[1]),
        ACT, SCALED, OF_DZ, OF_P, SUMS, EVEN, FORMAT, DTYPE,
    )  # fmt: skip
    q2, e2, s2, r2, g2 = _four(
        rows, pairs, words, 8, shift, z_at, z_step, token, T, inside, scale, (w0[2], w1[2], w2[2], w3[2]),
        ACT, SCALED, OF_DZ, OF_P, SUMS, EVEN, FORMAT, DTYPE,
    )  # fmt: skip
    q3, e3, s3, r3, g3 = _four(
        rows, pairs, words, 12, shift, z_at, z_step, token, T, inside, scale, (w0[3], w1[3], w2[3], w3[3]),
        ACT, SCALED, OF_DZ, OF_P, SUMS, EVEN, FORMAT, DTYPE,
    )  # fmt: skip
    if SUMS:
        features = f0 + tl.arange(0, BLOCK_F)
        total = (
            (s0[0] + s1[0]) + (s2[0] + s3[0]), (s0[1] + s1[1]) + (s2[1] + s3[1]),
            (s0[2] + s1[2]) + (s2[2] + s3[2]), (s0[3] + s1[3]) + (s2[3] + s3[3]),
        )  # fmt: skip
        tl.store(sums + tile_t * F + features, tl.sum(_by_feature(total), 0), mask=features < F)
    if OF_DZ:
        codes = (
            _codes(e0, e1, e2, e3, 0),
            _codes(e0, e1, e2, e3, 1),
            _codes(e0, e1, e2, e3, 2),
            _codes(e0, e1, e2, e3, 3),
        )
        store_operand(
            dz_values, pitch, dz_metadata, stride, T, F, f0, t0, _by_feature(q0), _by_feature(q1), _by_feature(q2),
            _by_feature(q3), _by_feature(codes), 0, False, FORMAT,
        )  # fmt: skip
    if OF_P:
        codes = (
            _codes(g0, g1, g2, g3, 0),
            _codes(g0, g1, g2, g3, 1),
            _codes(g0, g1, g2, g3, 2),
            _codes(g0, g1, g2, g3, 3),
        )
        store_operand(
            p_values, pitch, p_metadata, stride, T, F, f0, t0, _by_feature(r0), _by_feature(r1), _by_feature(r2),
            _by_feature(r3), _by_feature(codes), 0, False, FORMAT,
        )  # fmt: skip
