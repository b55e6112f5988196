"""MVUE: the unbiased 2:4 estimate of least variance of a group of four. [Chmiel et al., ICLR 2023]

Legend: g any shape, groups along one dim; x0..x3 the four planes of g, a_i = |x_i|.

The paper's p_i (kept probabilities, summing to 2) times h are the w_i below, and systematic sampling compares the
running sums of w with u h and u h + h; so no division is needed and a kept value is sign(x) max(a, h). With all
arithmetic in fp32 (fp64 for fp64), in this order, which every kernel follows to the bit:

1. q01 = a0 + a1;  q23 = a2 + a3
2. O_0 = a1 + q23;  O_1 = a0 + q23;  O_2 = q01 + a3;  O_3 = q01 + a2         sums of the other three
3. h = min(0.5 q01 + 0.5 q23, O_0, O_1, O_2, O_3)                             half the sum, or what one large a leaves
4. h = NaN unless 0.5 q01 + 0.5 q23 < Inf                                     an Inf or NaN poisons its group
5. w_i = min(a_i, h);  c0 = w0;  c1 = c0 + w1;  c2 = c1 + w2                  interval ends; the last takes the residue
6. t1 = u h;  t2 = t1 + h
7. large_i = a_i > h (one at most: kept for certain, p = 1);  z_i = a_i > 0
8. s0 = t1 >= c0, and two of z1 z2 z3, and not large_0                         first kept is not 0
   s1 = s0 and t1 >= c1, and z2 z3, and not large_1                            first kept is 2
   e1 = large_1 ? s0 : t2 >= c1 and (z2 or z3)                                 second kept is not 1
   e2 = large_2 ? s1 : t2 >= c2 and z3                                         second kept is 3
9. first = s1 ? 2 : s0;  second = e2 ? 3 : 1 + e1;  kept y = copysign(max(a, h), x), NaN where h is NaN

All comparisons with NaN are false, so a poisoned group keeps (0, 1). The z and large terms matter only where rounding
puts t on an end of an interval: without them a zero could be kept in place of a non-zero (chance 2**-24 a group).
Exactly two are kept because fl(t1 + h) >= fl(c + w) wherever t1 >= c and h >= w. A sum beyond the range counts as Inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.pack.reference import Planes, cast
from s24compile.kernels.philox import uniforms

_CHUNK_GROUPS = 65536
"""Groups handled at once: some 15 live fp32 planes of them fit in a CPU's cache, and two threads still share one."""


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.to(torch.float32)


def _sample(planes: Planes, u: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Steps 1-8: h and the choice (s0, s1, e1, e2)."""
    a0, a1, a2, a3 = (plane.abs() for plane in planes)
    q01, q23 = a0 + a1, a2 + a3
    half = 0.5 * q01 + 0.5 * q23
    h = torch.minimum(torch.minimum(a1 + q23, a0 + q23), torch.minimum(q01 + a3, q01 + a2)).minimum(half)
    h = torch.where(half < torch.inf, h, torch.nan)
    c0 = torch.minimum(a0, h)
    c1 = c0 + torch.minimum(a1, h)
    c2 = c1 + torch.minimum(a2, h)
    t1 = u * h
    t2 = t1 + h
    z1, z2, z3 = a1 > 0, a2 > 0, a3 > 0
    both, either = z2 & z3, z2 | z3
    large1 = a1 > h
    s0 = (t1 >= c0) & (both | (z1 & either)) & ~(a0 > h)
    s1 = s0 & (t1 >= c1) & both & ~large1
    e1 = torch.where(large1, s0, (t2 >= c1) & either)
    e2 = torch.where(a2 > h, s1, (t2 >= c2) & z3)
    return h, (s0, s1, e1, e2)


def _kept_value(x: Tensor, h: Tensor) -> Tensor:
    return torch.copysign(torch.maximum(x.abs(), h), x)  # maximum keeps a NaN


def _draws(seed: Tensor, rows: int, start: int, groups: int, device: torch.device, *, rows_last: bool) -> Tensor:
    return uniforms(seed.to(device), torch.arange(rows, device=device), start, groups, rows_last=rows_last)


def mvue(g: Tensor, seed: Tensor, dim: int) -> Tensor:
    """Unbiased 2:4 estimate of g along `dim`: contiguous, of g's shape and dtype.

    Args:
        g: any shape and strides; the size of `dim` is a multiple of 4.
        seed: one int64 element. Rows of the draw are the other dims, flattened in order.
    """
    moved = g.movedim(dim, -1)
    out = torch.empty(moved.shape, dtype=g.dtype, device=g.device)
    groups = moved.shape[-1] // 4
    flat, filled = (
        moved.reshape(out.numel() // max(4 * groups, 1), 4 * groups),
        out.view(-1, 4 * groups) if groups else out,
    )
    if groups:
        step = max(_CHUNK_GROUPS // groups, 1)
        for start in range(0, flat.shape[0], step):
            rows = torch.arange(start, min(start + step, flat.shape[0]), device=g.device)
            u = uniforms(seed.to(g.device), rows, 0, groups, rows_last=False)
            x0, x1, x2, x3 = _wide(flat[start : start + step]).unflatten(1, (-1, 4)).unbind(-1)
            h, (s0, s1, e1, e2) = _sample((x0, x1, x2, x3), u)
            kept = torch.stack((~s0, (s0 & ~s1) | ~e1, s1 | (e1 & ~e2), e2), dim=-1).flatten(1)
            values = torch.stack([_kept_value(x, h) for x in (x0, x1, x2, x3)], dim=-1).flatten(1)
            filled[start : start + step] = torch.where(kept, values, 0.0).to(g.dtype)
    return out.movedim(-1, dim).contiguous()


def mvue_pack(g: Tensor, seed: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """Packed MVUE of g^T: unpack(mvue_pack(g)) == mvue(g^T, dim=-1) at the same seed.

    Args:
        g: [T, F], any strides; T is padded with zeros to a multiple of 4.
        seed: one int64 element.

    Returns:
        (values, metadata) of the sparse operand [F, T].
    """
    tokens, features = g.shape
    groups = (tokens + 3) // 4
    low = torch.empty((groups, 2, features), dtype=dtype, device=g.device)
    codes = torch.empty((groups, features), dtype=torch.uint8, device=g.device)
    # Groups lie along T and planes are whole rows of g, so no transpose is needed before the values are halved.
    step = max(_CHUNK_GROUPS // max(features, 1), 1) // 4 * 4 or 4
    for start in range(0, groups, step):
        chunk = g[4 * start : 4 * (start + step)]
        if chunk.shape[0] % 4:
            chunk = torch.nn.functional.pad(chunk, (0, 0, 0, -chunk.shape[0] % 4))
        x0, x1, x2, x3 = _wide(chunk).unflatten(0, (-1, 4)).unbind(1)
        u = _draws(seed, features, start, x0.shape[0], g.device, rows_last=True)
        h, (s0, s1, e1, e2) = _sample((x0, x1, x2, x3), u)
        stop = start + x0.shape[0]
        low[start:stop, 0] = cast(_kept_value(torch.where(s1, x2, torch.where(s0, x1, x0)), h), dtype)
        low[start:stop, 1] = cast(_kept_value(torch.where(e2, x3, torch.where(e1, x2, x1)), h), dtype)
        first, second = s0.to(torch.uint8) + s1.to(torch.uint8), 1 + e1.to(torch.uint8) + e2.to(torch.uint8)
        codes[start:stop] = first | torch.where(e2, 3, second).to(torch.uint8) << 2
    values, metadata = FORMATS[format].empty(features, tokens, dtype, g.device)
    values.copy_(low.flatten(0, 1).t())
    metadata.copy_(FORMATS[format].encode(codes.t().contiguous(), dtype))
    return values, metadata
