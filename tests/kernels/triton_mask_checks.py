"""Triton's sums over masks and weights against their references (test_triton.py starts this). Legend: w [m, n]."""

import pytest
import torch

from s24compile.kernels import ops, providers
from s24compile.kernels.triton import tiles
from tests.kernels.triton_comparison import agree, both

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
NAN, INF = float("nan"), float("inf")


def ours(op, *args):
    with providers.only("triton"):
        return getattr(ops, op)(*args)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [(4, 4), (1, 512), (9, 516), (130, 36), (300, 1028), (5, 0)], ids=str)
def test_the_scale_is_summed_once_over_every_group(shape, turned, dtype, device):
    def make():
        torch.manual_seed(1)
        w = torch.randn(shape, device=device).to(dtype)
        return (w.t().contiguous().t() if turned else w,)

    (found,), (expected,) = both("soft_threshold_scale", make)
    # Both sum in fp64 and round once: an ulp apart only where fp64 rounding moves the last bit of fp32.
    torch.testing.assert_close(found, expected, rtol=1.2e-7, atol=0)
    assert found.shape == ()


def test_the_scale_takes_leading_dims_and_odd_strides(device):
    w = torch.randn(6, 40, 72, device=device)
    for x in (w, w[1], w[0, 0], w[:, 3:7, 8:40], w.transpose(0, 1), w[::2, :, :4]):
        (found,), (expected,) = both("soft_threshold_scale", lambda x=x: (x,))
        torch.testing.assert_close(found, expected, rtol=1.2e-7, atol=0)


def test_the_scale_is_the_same_in_every_run(device):
    w = torch.randn(300, 516, device=device)
    assert len({ours("soft_threshold_scale", w).item() for _ in range(3)}) == 1


@pytest.mark.parametrize(
    ("group", "scale"),
    [
        ([1.0, -2, 3, -4], (3 * 1 + 4 * 2) / (1 + 4)),
        ([5.0, 5, 5, 1], 1.0),
        ([0.0, -0.0, 0, -7], 1.0),
        ([1e-30, 3e-30, 2e-30, 0], (3 * 2 + 2 * 1) / (4 + 1)),
        ([NAN, 1, 2, 3], NAN),
        ([INF, 1, 2, 3], NAN),
    ],
    ids=str,
)
def test_the_scale_of_literal_groups(group, scale, device):
    w = torch.tensor([group], device=device)
    (found,), (expected,) = both("soft_threshold_scale", lambda: (w,))
    torch.testing.assert_close(found, torch.tensor(scale, device=device), equal_nan=True)
    torch.testing.assert_close(found, expected, rtol=1.2e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("size", [1, 7, tiles.FLIPS.columns, tiles.FLIPS.columns + 1, 3 * tiles.FLIPS.columns - 5])
def test_flips_are_counted_exactly(size, device):
    before, after = torch.rand(size, device=device) > 0.5, torch.rand(size, device=device) > 0.5
    agree(*both("flip_rate", lambda: (before, after)), exact=True)
    assert ours("flip_rate", before, ~before) == 1.0
    assert ours("flip_rate", before, before) == 0.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_bytes_that_differ_in_any_bit_count_once(dtype, device):
    before = torch.arange(256, device=device).to(torch.uint8).view(16, 16).view(dtype)
    after = before.clone()
    after.view(torch.uint8)[0, :8] ^= 1 << torch.arange(8, device=device).to(torch.uint8)
    assert ours("flip_rate", before, after) == 8 / 256


def test_leave_masks_of_other_layouts_to_the_reference(device):
    supports = providers.find("flip_rate", "triton").supports
    mask = torch.rand(16, 16, device=device) > 0.5
    assert "contiguous" in supports(mask, mask.t())
    assert "one byte" in supports(mask.float(), mask.float())
    assert supports(mask, ~mask) is None
