"""Slow and obvious versions of the kernels' rules, written from the papers' and the hardware's descriptions."""

from __future__ import annotations

import itertools
import math

import torch

from s24compile.kernels.format import FORMATS, OpaqueFormat

ANY_ROWS = [n for n, format in FORMATS.items() if not format.interleaved and not isinstance(format, OpaqueFormat)]
"""Formats that take any number of rows; the others are tested in test_gated_format.py and test_cusparselt.py."""


def all_transposable_patterns():
    """The 90 4x4 0/1 matrices whose rows and columns sum to 2, in descending order of their 16 bits: [90, 4, 4]."""
    found = []
    for bits in range(2**16 - 1, -1, -1):
        rows = [bits >> shift & 15 for shift in (12, 8, 4, 0)]
        if all(row.bit_count() == 2 for row in rows):
            matrix = [[row >> (3 - column) & 1 for column in range(4)] for row in rows]
            if all(sum(column) == 2 for column in zip(*matrix, strict=True)):
                found.append(matrix)
    return torch.tensor(found)


def blocks_of(w):
    """[m, n] -> [m/4, n/4, 4, 4]."""
    return w.unflatten(0, (-1, 4)).unflatten(2, (-1, 4)).transpose(1, 2)


def best_patterns(w):
    """argmax over the 90 in fp64, lowest index of equal sums: [m/4, n/4]."""
    scores = torch.einsum("abrc,jrc->abj", blocks_of(w.double().abs()), all_transposable_patterns().double())
    equal = scores == scores.amax(-1, keepdim=True)
    return equal.to(torch.uint8).argmax(-1)  # argmax gives the first of equal ones


def two_largest(w):
    """bool mask by stable sort of magnitudes along the last dim."""
    groups = w.abs().unflatten(-1, (-1, 4))
    order = groups.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order, True).flatten(-2)


def sm90_wide_index(row, k, m):
    """By the drawing in kernels/metadata.py: (index of the int16, shift of the code in it) of the group at (row, k)."""
    m_atoms = math.ceil(m / 64)
    r, c = row % 64, k % 64 // 16
    m0, m1, m2 = r % 8, r // 8 % 2, r // 16
    k1, k2 = c % 2, c // 2
    atom = (k // 64) * m_atoms + row // 64
    return atom * 256 + m1 + 2 * (k2 + 2 * (m0 + 8 * (k1 + 2 * m2))), 4 * (k % 16 // 4)


def sm90_narrow_index(row, k, m):
    """The same for 8-bit values: (byte, shift). Atoms of 64 rows by 128 k, row-major inside."""
    atom = (k // 128) * math.ceil(m / 64) + row // 64
    return atom * 1024 + row % 64 * 16 + k % 128 // 8, 4 * (k % 8 // 4)


def mvue_probabilities(x):
    """p of docs/math.md (MVUE) for groups [n, 4], in fp64, straight from its text."""
    a = x.double().abs()
    total, largest = a.sum(1, keepdim=True), a.argmax(1, keepdim=True)
    is_largest = torch.zeros_like(a, dtype=torch.bool).scatter_(1, largest, True)
    others = a.masked_fill(is_largest, 0.0).sum(1, keepdim=True)
    even = 2 * a / total
    dominated = torch.where(is_largest, 1.0, a / others)
    return torch.where(a.gather(1, largest) <= total / 2, even, dominated).nan_to_num(0.0)


def mvue_variance(x):
    """Exact total variance of each group [n]: sum a^2 (1/p - 1), zeros contributing nothing."""
    a, p = x.double().abs(), mvue_probabilities(x)
    return torch.where(a > 0, a * a * (1 / p - 1), 0.0).sum(1)


def pairs():
    """Kept positions in descending order of their bits."""
    return list(itertools.combinations(range(4), 2))
