"""Which two of four are kept: the transposable mask [FST 5.1], row-wise magnitude, and S-STE's soft threshold.

Legend: w [m, n]; B blocks of 4x4; every rule ranks magnitudes |w| in fp32 (fp64 for fp64), -0.0 equals 0.0.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from s24compile.kernels.format import code_table
from s24compile.kernels.patterns import PAIRS, TRANSPOSABLE
from s24compile.kernels.rounding import widen

_CHUNK_BLOCKS = 16384
"""Blocks searched at once: 6 MB of sums, so that the search of a large weight stays in the cache."""

# Ordered pairs (top, bottom) of a block's halves as one number 6 top + bottom, for the two overlapping rows of each
# half: rows that share one column. The other half must then be the two pairs that hold the empty column and one
# each of the columns with a single one; there are 12 unordered choices of the first half.
_SPLIT = sorted(
    {(tuple(sorted(p[:2])), tuple(sorted(p[2:]))) for p in TRANSPOSABLE if len(set(p[:2])) == 2 and p[0] + p[1] != 5}
)


def transposable_patterns(w: Tensor) -> Tensor:
    """The best transposable pattern of each 4x4 block: argmax_j sum(|W| * P_j) over the 90; ties take the lowest j.

    Separable: with pair sums of the four rows A..D, patterns are (p, p, ~p, ~p) [6], (p, ~p, q, ~q) [36, two
    independent maxima of 6] and overlapping rows (p, q, r, s) [48 = 12 x 2 x 2, again independent halves]. A
    pattern's sum is (A + B) + (C + D), a pair's is x_i + x_j, all rounded in that order.
    A block with a NaN gets pattern 0. An Inf counts as the largest; where several Infs or sums beyond the range
    meet, some legal pattern. Every result is legal.

    Args:
        w: [m, n], m and n multiples of 4, any strides.

    Returns:
        uint8 [m/4, n/4] of pattern numbers (`patterns.TRANSPOSABLE`).
    """
    m, n = w.shape
    wide = torch.float64 if w.dtype == torch.float64 else torch.float32
    # [block row, block column, row, column] -> [row, column, B]
    cells = w.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).permute(1, 3, 0, 2).to(wide).abs().reshape(4, 4, -1)
    found = [_search(chunk) for chunk in cells.split(_CHUNK_BLOCKS, dim=2)]
    return torch.cat(found).reshape(m // 4, n // 4)


def _search(cells: Tensor) -> Tensor:
    """Magnitudes [4 rows, 4 columns, B] -> pattern numbers uint8 [B]."""
    first, second = zip(*PAIRS, strict=True)
    sums = cells[:, list(first)] + cells[:, list(second)]  # [4, 6, B]
    top = (sums[0][:, None] + sums[1][None]).flatten(0, 1)  # [36, B]
    bottom = (sums[2][:, None] + sums[3][None]).flatten(0, 1)
    numbers = _numbers(cells.device)

    # Complementary rows in both halves: the number of (p, ~p) is 6 p + 5 - p.
    best_top, p = top[5:31:5].max(0)
    best_bottom, q = bottom[5:31:5].max(0)
    best, number = best_top + best_bottom, numbers.complement[p * 6 + q]
    # The same pair twice, then its complement twice: 7 p over 35 - 7 p.
    for score, found in (
        _first_max(top[0::7] + bottom[0::7].flip(0), numbers.same),
        _first_max(*_overlapping(top, bottom, numbers.splits)),
    ):
        better = (score > best) | ((score == best) & (found < number))
        best, number = torch.where(better, score, best), torch.where(better, found, number)
    return torch.where(best == best, number, 0)  # a NaN anywhere reaches every maximum


def _overlapping(top: Tensor, bottom: Tensor, splits: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and pattern numbers [12, B] of the best order of the rows in both halves, per unordered split."""
    upper, lower = splits[:, 0], splits[:, 1]
    kept = torch.maximum(top[upper], top[_swapped(upper)]) + torch.maximum(bottom[lower], bottom[_swapped(lower)])
    swap_top, swap_bottom = top[_swapped(upper)] > top[upper], bottom[_swapped(lower)] > bottom[lower]
    number = splits[:, 2:].to(torch.uint8)[:, :, None]
    ordered = torch.where(
        swap_top,
        torch.where(swap_bottom, number[:, 3], number[:, 2]),
        torch.where(swap_bottom, number[:, 1], number[:, 0]),
    )
    return kept, ordered


def _swapped(half: Tensor) -> Tensor:
    return half % 6 * 6 + half // 6


def _first_max(scores: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score over dim 0 and, among equal ones, the lowest pattern number. [c, B], [c, B or 1] -> [B], [B]."""
    best = scores.amax(0)
    return best, torch.where(scores == best, numbers, 255).amin(0)


class _Numbers:
    """Pattern numbers of the three kinds of patterns, as tensors on one device."""

    def __init__(self, device: torch.device) -> None:
        number = {pattern: j for j, pattern in enumerate(TRANSPOSABLE)}
        complement = [number[p, 5 - p, q, 5 - q] for p in range(6) for q in range(6)]
        self.complement = code_table(device, tuple(complement))
        self.same = code_table(device, tuple(number[p, p, 5 - p, 5 - p] for p in range(6)))[:, None]
        splits = [
            (6 * p + q, 6 * r + s, number[p, q, r, s], number[p, q, s, r], number[q, p, r, s], number[q, p, s, r])
            for (p, q), (r, s) in _SPLIT
        ]
        self.splits = code_table(device, tuple(x for split in splits for x in split), torch.int64).reshape(-1, 6)


_numbers = functools.cache(_Numbers)


def expand_patterns(patterns: Tensor, kind: str) -> Tensor:
    """Pattern numbers -> the bool mask they stand for: uint8 [m/4, n/4] -> [m, n], or "rows": [m, n/4] -> [m, n]."""
    if kind == "rows":
        table = code_table(patterns.device, tuple(int(c in pair) for pair in PAIRS for c in range(4)), torch.bool)
        return table.reshape(6, 4)[patterns.int()].flatten(1)
    pairs = code_table(patterns.device, tuple(p for pattern in TRANSPOSABLE for p in pattern)).reshape(90, 4)
    rows = pairs[patterns.int()].transpose(1, 2).flatten(0, 1)  # [m/4, n/4, 4] -> [m, n/4]
    return expand_patterns(rows, "rows")


def transposable_mask(w: Tensor) -> Tensor:
    """bool [m, n]: the transposable mask of largest L1 norm. See `transposable_patterns`."""
    return expand_patterns(transposable_patterns(w), "transposable")


def _kept(w: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Whether each place of a group of four (last dim) is among its two largest: four bools [..., n/4].

    The bits of a magnitude order like the number, with NaN above Inf, so this order is total and exactly two of
    four win at least two of their three comparisons.
    """
    keys = w.abs().view(torch.int64) if w.dtype == torch.float64 else w.to(torch.float32).abs().view(torch.int32)
    k0, k1, k2, k3 = keys.unflatten(-1, (-1, 4)).unbind(-1)
    w01, w02, w03, w12, w13, w23 = k0 >= k1, k0 >= k2, k0 >= k3, k1 >= k2, k1 >= k3, k2 >= k3
    return (
        (w01 & w02) | (w01 & w03) | (w02 & w03),
        (~w01 & (w12 | w13)) | (w12 & w13),
        (~w02 & (~w12 | w23)) | (~w12 & w23),
        (~w03 & (~w13 | ~w23)) | (~w13 & ~w23),
    )


def magnitude_patterns(w: Tensor) -> Tensor:
    """Pair number (uint8 [..., n/4]) of the two largest magnitudes of each four along the last dim.

    Ties keep the lower index. NaN counts as larger than Inf. Always exactly two.
    """
    k0, k1, k2, _ = (kept.to(torch.uint8) for kept in _kept(w))
    # 1100 1010 1001 0110 0101 0011 in order: with place 0 kept 0, 1, 2; else with place 1 kept 3, 4; else 5.
    return (5 - k0 * (3 + k1 * 2 + k2) - (1 - k0) * k1 * (1 + k2)).contiguous()


def magnitude_mask(w: Tensor) -> Tensor:
    """bool mask of w's shape: the two largest magnitudes of each four along the last dim. See `magnitude_patterns`."""
    return torch.stack(_kept(w), dim=-1).flatten(-2)


def soft_threshold(w: Tensor) -> Tensor:
    """S(w) of S-STE [S-STE 4]: keeps the two largest of each four, shrunk to sign(x) (|x| - t); the others become 0.

    t is the second-smallest magnitude (the larger of the two that go), so S is continuous in w. Rounded once, to
    w's dtype. Returns a contiguous tensor of w's shape.
    """
    wide = widen(w)
    groups, kept = wide.unflatten(-1, (-1, 4)), torch.stack(_kept(w), dim=-1)
    threshold = groups.abs().masked_fill(kept, 0.0).amax(-1, keepdim=True)
    shrunk = torch.copysign(groups.abs() - threshold, groups)
    return shrunk.masked_fill(~kept, 0.0).flatten(-2).to(w.dtype).contiguous()


def soft_threshold_scale(w: Tensor) -> Tensor:
    """beta = <W, S(W)> / <S(W), S(W)>, the least-squares scale of S(W) to W: 0-d fp32. 1 where S(W) is 0.

    Summed in fp64: <W, S> of a large weight would otherwise depend on the order of its sum.
    """
    wide = w.double()
    shrunk = soft_threshold(wide)
    norm = (shrunk * shrunk).sum()
    return torch.where(norm == 0, 1.0, (wide * shrunk).sum() / norm).to(torch.float32)


def flip_rate(before: Tensor, after: Tensor) -> Tensor:
    """r_t = |M_t - M_{t-1}|_1 / D [FST 4.1]: the share of entries where two masks differ. 0-d fp32, 0 if empty."""
    return (before != after).sum().to(torch.float32) / max(before.numel(), 1)
