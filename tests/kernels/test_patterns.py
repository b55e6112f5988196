"""The tables of patterns: literal blocks first."""

import torch

from s24compile.kernels import ops
from s24compile.kernels.patterns import PAIR_CODES, PAIR_OF_CODE, PAIRS, TRANSPOSABLE, TRANSPOSABLE_COLUMNS
from tests.kernels.oracles import all_transposable_patterns


def test_pairs_are_the_six_in_descending_order_of_bits():
    bits = ["".join("1" if c in pair else "0" for c in range(4)) for pair in PAIRS]
    assert bits == ["1100", "1010", "1001", "0110", "0101", "0011"]
    assert bits == sorted(bits, reverse=True)


def test_codes_are_first_or_second_shifted_by_two():
    assert PAIR_CODES == (0x4, 0x8, 0xC, 0x9, 0xD, 0xE)
    assert all(PAIR_OF_CODE[code] == pair for pair, code in enumerate(PAIR_CODES))


def test_there_are_ninety_transposable_patterns_in_descending_order_of_bits(device):
    expected = all_transposable_patterns()
    assert len(TRANSPOSABLE) == len(expected) == 90
    assert TRANSPOSABLE[0] == (0, 0, 5, 5), "1100/1100/0011/0011"
    numbers = torch.arange(90, dtype=torch.uint8, device=device)[:, None]
    masks = ops.expand_patterns(numbers, "transposable").reshape(90, 4, 4)
    assert torch.equal(masks.cpu().long(), expected)


def test_columns_table_is_the_transpose():
    for pattern, columns in zip(TRANSPOSABLE, TRANSPOSABLE_COLUMNS, strict=True):
        kept = {(row, column) for row, pair in enumerate(pattern) for column in PAIRS[pair]}
        assert kept == {(row, column) for column, pair in enumerate(columns) for row in PAIRS[pair]}


def test_rows_expand_to_their_pairs(device):
    mask = ops.expand_patterns(torch.arange(6, dtype=torch.uint8, device=device)[None], "rows")
    assert mask.cpu().reshape(6, 4).int().tolist() == [[int(c in pair) for c in range(4)] for pair in PAIRS]
