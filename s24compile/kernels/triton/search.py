"""The best of the 90 transposable 2:4 patterns of a 4x4 block, as a Triton device function.

Source: Hu et al., ICML 2024, section 5.1 (there a convolution with 90 filters). Pair sums make it separable: with
A..D the six pair sums of rows 0..3 (kernels/patterns.py numbers the pairs; ~p is 5 - p), a pattern scores
(A[p] + B[q]) + (C[r] + D[s]) and is one of
    p, p, ~p, ~p        6, alone
    p, ~p, q, ~q        36: the upper and the lower half are chosen independently
    p, q, ~q, ~p        48: twelve unordered {p, q}; the order within either half is chosen independently
Additions and ties are those of masks/reference.py: within a choice the lower pair goes first, among equal sums the
lowest pattern number wins. The sums are made twice in the text and once in the code: the compiler joins them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def pair_sums(a, b, c, d):
    """The six sums of two of four, in the order of the pair numbers."""
    return a + b, a + c, a + d, b + c, b + d, c + d


@triton.jit
def _first_complement(X, Y):
    """The largest of X[p] + Y[~p] and the lowest p that reaches it."""
    best = X[0] + Y[5]
    pair = tl.zeros(best.shape, tl.int32)
    for p in tl.static_range(1, 6):
        score = X[p] + Y[5 - p]
        pair = tl.where(score > best, p, pair)
        best = tl.maximum(best, score)
    return best, pair


@triton.jit
def _overlapping_score(A, B, C, D, p: tl.constexpr, q: tl.constexpr):
    upper = tl.maximum(A[p] + B[q], A[q] + B[p])
    return upper + tl.maximum(C[5 - q] + D[5 - p], C[5 - p] + D[5 - q])


@triton.jit
def _overlapping_number(A, B, C, D, p: tl.constexpr, q: tl.constexpr):
    """Pattern number of the best order of the rows in both halves. Fifteen patterns begin with each pair."""
    lowest: tl.constexpr = 15 * p + 2 * q - 1 + (4 if p + q > 5 else 0)
    swapped: tl.constexpr = 13 * (q - p) + 1
    upper = tl.where(A[q] + B[p] > A[p] + B[q], lowest + swapped, lowest)
    return upper + tl.where(C[5 - p] + D[5 - q] > C[5 - q] + D[5 - p], 1, 0)


@triton.jit
def best_pattern(A, B, C, D):
    """Number (int32) of the best pattern of each block; 0 for a block with a NaN.

    A..D: tuples of six fp32 tensors, the pair sums of |w| of rows 0..3.
    """
    upper, p_best = _first_complement(A, B)
    lower, q_best = _first_complement(C, D)
    complementary = upper + lower
    best = complementary
    for p in tl.static_range(6):
        best = tl.maximum(best, (A[p] + B[p]) + (C[5 - p] + D[5 - p]))
        for q in tl.static_range(p + 1, 6):
            if p + q != 5:
                best = tl.maximum(best, _overlapping_score(A, B, C, D, p, q))

    # Pattern (p, ~p, 0, ~0) has number 13 p + 9, or + 10 from p = 3 on; (p, p, ~p, ~p) has 17 p, or + 4 from there on.
    number = tl.where(complementary == best, 13 * p_best + tl.where(p_best < 3, 9, 10) + q_best, 255)
    for p in tl.static_range(6):
        same = (A[p] + B[p]) + (C[5 - p] + D[5 - p])
        number = tl.where(same == best, tl.minimum(number, 17 * p + (0 if p < 3 else 4)), number)
        for q in tl.static_range(p + 1, 6):
            if p + q != 5:
                reached = _overlapping_score(A, B, C, D, p, q) == best
                number = tl.where(reached, tl.minimum(number, _overlapping_number(A, B, C, D, p, q)), number)
    total = ((A[0] + A[5]) + (B[0] + B[5])) + ((C[0] + C[5]) + (D[0] + D[5]))
    return tl.where(total == total, number, 0)
