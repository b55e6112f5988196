"""MVUE: the unbiased 2:4 estimate of least variance of a group of four. [Chmiel et al., ICLR 2023]

Legend: g any shape, groups along one dim; x0..x3 the four places of a group, a_i = |x_i|.

The paper's p_i (probabilities of being kept, summing to 2) times h are the w_i below, and systematic sampling
compares the running sums of w with u h and u h + h: no division is needed and a kept value is sign(x) max(a, h).
All arithmetic is fp32 (fp64 for fp64) in this order, which every kernel follows to the bit::

    1.  q01 = a0 + a1;  q23 = a2 + a3;  half = 0.5 q01 + 0.5 q23
    2.  o0 = a1 + q23;  o1 = a0 + q23;  o2 = q01 + a3;  o3 = q01 + a2     sums of the other three
    3.  h = min(half, o0, o1, o2, o3)                half the sum, or what one large a leaves
        h = NaN unless half < Inf                    an Inf or a NaN poisons its group
    4.  w_i = min(a_i, h);  c0 = w0;  c1 = c0 + w1;  c2 = c1 + w2        ends of intervals; the last has no end
    5.  t1 = u h;  t2 = t1 + h
    6.  large_i = a_i > h                            one at most; p = 1, kept for certain
        z_i = a_i != 0
    7.  s0 = t1 >= c0 and (two of z1, z2, z3) and not large_0             the first kept is not 0
        s1 = s0 and t1 >= c1 and z2 and z3 and not large_1                the first kept is 2
        e1 = s0 if large_1 else (t2 >= c1 and (z2 or z3))                 the second kept is not 1
        e2 = e1 and (s1 if large_2 else (t2 >= c2 and z3))                the second kept is 3
    8.  first = s0 + s1;  second = 1 + e1 + e2
        y = copysign(max(a, h), x) at both           NaN where h is NaN

A comparison with NaN is false, so a poisoned group keeps (0, 1). Exactly two are kept, first < second, because
fl(t1 + h) >= fl(c + w) wherever t1 >= c and h >= w. The z and large terms matter only where rounding puts a t on the
end of an interval (a chance of 2**-24 a group): without them a zero could be kept in place of a non-zero, or a large
one lost. A sum beyond the range counts as Inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.philox import uniforms
from s24compile.kernels.rounding import cast, widen
from s24compile.kernels.scaling import quantised

_CHUNK_GROUPS = 65536
"""Groups handled at once: some 15 live fp32 planes of them fit in a CPU's cache, and torch still splits each in two."""


def _sample(g: Tensor, u: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps 1-7 for g whose `dim` is the four places: h, first and second (uint8), all of u's shape."""
    a0, a1, a2, a3 = (place.abs() for place in g.unbind(dim))
    q01, q23 = a0 + a1, a2 + a3
    half = 0.5 * q01 + 0.5 * q23
    h = torch.minimum(torch.minimum(a1 + q23, a0 + q23), torch.minimum(q01 + a3, q01 + a2)).minimum(half)
    h = h + 0.0 * half  # 0 times Inf or NaN is NaN; twenty times the speed of a `where`
    c0 = torch.minimum(a0, h)
    c1 = c0 + torch.minimum(a1, h)
    c2 = c1 + torch.minimum(a2, h)
    t1 = u * h
    t2 = t1 + h
    z1, z2, z3 = a1.bool(), a2.bool(), a3.bool()
    both, either = z2 & z3, z2 | z3
    large1, large2 = a1 > h, a2 > h
    s0 = (t1 >= c0) & (both | (z1 & either)) & ~(a0 > h)
    s1 = s0 & (t1 >= c1) & both & ~large1
    e1 = (s0 & large1) | ((t2 >= c1) & either & ~large1)
    e2 = e1 & ((s1 & large2) | ((t2 >= c2) & z3 & ~large2))
    first, second = (flags.view(torch.uint8) for flags in (s0, e1))
    return h, first + s1.view(torch.uint8), second + e2.view(torch.uint8) + 1


def _kept(g: Tensor, u: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Step 8: the two kept values and their places (int64), like g but with 2 places along `dim`."""
    h, first, second = _sample(g, u, dim)
    places = torch.stack((first, second), dim).long()
    x = g.gather(dim, places)
    return torch.copysign(torch.maximum(x.abs(), h.unsqueeze(dim)), x), places


def mvue(g: Tensor, seed: Tensor, dim: int) -> Tensor:
    """Unbiased 2:4 estimate of g along `dim`: contiguous, of g's shape and dtype.

    Args:
        g: any shape and strides; the size of `dim` is a multiple of 4.
        seed: one int64 element.
    """
    moved = g.movedim(dim, -1)
    out = torch.zeros(moved.shape, dtype=g.dtype, device=g.device)
    if not g.numel():
        return out.movedim(-1, dim).contiguous()
    groups, seed = moved.shape[-1] // 4, seed.to(g.device)
    flat, filled = moved.reshape(-1, groups, 4), out.view(-1, groups, 4)
    step = max(_CHUNK_GROUPS // groups, 1)
    for start in range(0, flat.shape[0], step):
        chunk = widen(flat[start : start + step])
        rows = torch.arange(start, start + chunk.shape[0], device=g.device)
        values, places = _kept(chunk, uniforms(seed, rows, 0, groups, rows_last=False), 2)
        filled[start : start + step].scatter_(2, places, values.to(g.dtype))
    return out.movedim(-1, dim).contiguous()


def mvue_pack(
    g: Tensor, seed: Tensor, dtype: torch.dtype, format: str, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Packed MVUE of g^T: unpack(mvue_pack(g)) == mvue(g^T, dim=-1) at the same seed.

    Args:
        g: [T, F], any strides; T is padded with zeros to a multiple of 4.
        seed: one int64 element.
        scale: fp32 [1], what an 8-bit `dtype` is quantised by; no argument of the op.

    Returns:
        (values, metadata) of the sparse operand [F, T], as `Format.empty_whole` lays them out.
    """
    tokens, features = g.shape
    groups, seed = (tokens + 3) // 4, seed.to(g.device)
    kept = torch.empty((groups, 2, features), dtype=dtype, device=g.device)
    codes = torch.empty((groups, features), dtype=torch.uint8, device=g.device)
    rows = torch.arange(features, device=g.device)
    # Groups lie along T, so the places of a group are whole rows of g: the transpose waits for the halved values.
    step = max(_CHUNK_GROUPS // max(features, 1), 1) // 4 * 4 or 4  # whole calls of Philox
    for start in range(0, groups, step):
        chunk = g[4 * start : 4 * (start + step)]
        if chunk.shape[0] % 4:
            chunk = torch.nn.functional.pad(chunk, (0, 0, 0, -chunk.shape[0] % 4))
        chunk = widen(chunk).unflatten(0, (-1, 4))
        u = uniforms(seed, rows, start, chunk.shape[0], rows_last=True)
        values, places = _kept(chunk, u, 1)
        kept[start : start + step] = cast(values, dtype) if scale is None else quantised(values, scale, dtype)
        codes[start : start + step] = places[:, 0] | places[:, 1] << 2
    layout = FORMATS[format]
    whole = layout.empty_whole(features, tokens, dtype, g.device)
    values, metadata = layout.parts(*whole, features, tokens)
    values.copy_(layout.store_rows(kept.flatten(0, 1).t()))
    metadata.copy_(layout.encode(codes.t().contiguous(), dtype))
    return whole


def column_sums(g: Tensor) -> Tensor:
    """fp32 (fp64 for fp64) sums of g [T, F] over T: a bias gradient."""
    return g.sum(0, dtype=torch.promote_types(g.dtype, torch.float32))


def mvue_pack_sum(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """(values, metadata, sums): `mvue_pack` of g [T, F], and `column_sums` of the same g."""
    return *mvue_pack(g, seed, dtype, format), column_sums(g)
