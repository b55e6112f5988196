"""The legal 2:4 patterns, enumerated once: 6 of a group of four, 90 transposable ones of a 4x4 block. A leaf.

A *pair* is the kept positions i < j of a group of four; pairs are numbered in descending order of their bits
(read left to right), so pair p and pair 5 - p are complements::

    pair   0     1     2     3     4     5
    bits   1100  1010  1001  0110  0101  0011
    i, j   0, 1  0, 2  0, 3  1, 2  1, 3  2, 3
    code   4     8     12    9     13    14        code = i | j << 2: the hardware's four bits of metadata

A *transposable* pattern is four pairs, one per row of a 4x4 block, whose columns also hold two ones each. There are
90; they are numbered in descending lexicographic order of their 16 row-major bits (so the first is
1100/1100/0011/0011), which is ascending order of their pairs. [FST 5.1; Hubara et al., NeurIPS 2021]

A weight's patterns [m, n] are uint8 numbers, of one *kind*: "transposable", [m/4, n/4] of 0..89, or "rows", [m, n/4] of
pair numbers 0..5.
"""

from __future__ import annotations

import itertools

PAIRS: tuple[tuple[int, int], ...] = tuple(itertools.combinations(range(4), 2))
"""Kept positions (i, j) by pair number."""

PAIR_CODES: tuple[int, ...] = tuple(i | j << 2 for i, j in PAIRS)
"""Metadata code by pair number."""

PAIR_OF_CODE: tuple[int, ...] = tuple(PAIR_CODES.index(code) if code in PAIR_CODES else 0 for code in range(16))
"""Pair number by metadata code; 0 for the ten codes that are illegal."""


def _code_of_bits(bits: int) -> int:
    """Metadata code of the kept places of a group (bit c = place c), for any number of them.

    Two: their code. Fewer: the lowest free places fill up (their values are 0). More: the first and the last.
    """
    kept = [c for c in range(4) if bits >> c & 1]
    if len(kept) < 2:
        kept = sorted((kept + [c for c in range(4) if c not in kept])[:2])
    return PAIR_CODES[PAIRS.index((kept[0], kept[-1]))]


CODE_OF_BITS: tuple[int, ...] = tuple(_code_of_bits(bits) for bits in range(16))
"""Metadata code by the four bits that say which places of a group are kept."""


def _columns_hold_two(pairs: tuple[int, ...]) -> bool:
    return all(sum(column in PAIRS[p] for p in pairs) == 2 for column in range(4))


TRANSPOSABLE: tuple[tuple[int, ...], ...] = tuple(
    pairs for pairs in itertools.product(range(6), repeat=4) if _columns_hold_two(pairs)
)
"""The pair number of each row of the block, by pattern number 0..89."""

TRANSPOSABLE_COLUMNS: tuple[tuple[int, ...], ...] = tuple(
    tuple(
        PAIRS.index(tuple(row for row in range(4) if column in PAIRS[pattern[row]]))  # type: ignore[arg-type]
        for column in range(4)
    )
    for pattern in TRANSPOSABLE
)
"""The pair number of each *column* of the block (the same pattern read for the transposed weight)."""
