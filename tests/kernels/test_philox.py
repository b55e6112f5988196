"""The generator: known answers, and draws that depend on (seed, row, group) only."""

import pytest
import torch

from s24compile.kernels.philox import philox4x32, uniforms

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, expected.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85


def scalar_philox(counter, key):
    """The algorithm on Python's integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(M0 * c0, 2**32)
        high1, low1 = divmod(M1 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + W0) % 2**32, (k1 + W1) % 2**32
    return c0, c1, c2, c3


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers_of_random123(counter, key, expected, device):
    def as_tensors(numbers):
        return tuple(torch.tensor(n, dtype=torch.int64, device=device) for n in numbers)

    assert tuple(int(word) for word in philox4x32(as_tensors(counter), as_tensors(key))) == expected
    assert scalar_philox(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 - 1, -(2**63)])
def test_draws_are_the_documented_words(seed, device):
    rows = torch.tensor([0, 7, 2**32 + 3], device=device)
    drawn = uniforms(torch.tensor([seed], device=device), rows, 8, 6, rows_last=False)
    assert drawn.dtype == torch.float32
    for i, row in enumerate(rows.tolist()):
        for j in range(6):
            group, bits = 8 + j, seed % 2**64
            counter = (group // 4, row % 2**32, row >> 32, 0)
            word = scalar_philox(counter, (bits % 2**32, bits >> 32))[group % 4]
            assert drawn[i, j].item() == (word >> 8) * 2.0**-24


@pytest.mark.parametrize("groups", [0, 1, 5, 16])
def test_both_layouts_hold_the_same_draws(groups, device):
    seed, rows = torch.tensor([3], device=device), torch.arange(5, device=device)
    first, last = (uniforms(seed, rows, 4, groups, rows_last=flag) for flag in (False, True))
    assert first.shape == (5, groups)
    assert torch.equal(first, last.t())


def test_draws_are_uniform_and_uncorrelated(device):
    drawn = uniforms(torch.tensor([11], device=device), torch.arange(512, device=device), 0, 512, rows_last=False)
    count, bins = drawn.numel(), 64
    expected = count / bins
    chi2 = ((torch.histc(drawn.double().cpu(), bins, 0.0, 1.0) - expected) ** 2 / expected).sum().item()
    # chi^2 with 63 degrees of freedom has mean 63 and deviation 11.2; six deviations.
    assert chi2 < 63 + 6 * 11.2
    centred = drawn.double() - 0.5
    for a, b in ((centred[:, 1:], centred[:, :-1]), (centred[1:], centred[:-1])):
        correlation = (a * b).mean().item() * 12
        assert abs(correlation) < 6 / a.numel() ** 0.5, "neighbours are independent: deviation 1 / sqrt(n)"
