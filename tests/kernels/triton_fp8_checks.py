"""Triton's kernels of eight-bit floats are the references to the bit (test_triton.py starts this)."""

import pytest
import torch

from s24compile.kernels import ops, providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.fp8 import triton_tiles as tiles
from s24compile.kernels.triton.tiles import Tile
from tests.kernels.triton_comparison import both

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
INF, NAN = float("inf"), float("nan")


def agree(found, expected, exact=True):
    """To the bit but for the sign of NaN; where not exact, fp32 sums within their roundings."""
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype, x.stride()) == (y.shape, y.dtype, y.stride())
        if x.dtype in (E4M3, E5M2):
            x, y = x.float(), y.float()
        tolerance = {} if exact or x.shape == (1,) or x.dtype != FP32 else {"rtol": 1e-5, "atol": 1e-4}
        torch.testing.assert_close(x, y, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))


def special(device, dtype, *shape):
    """Normal values of many sizes, among them Inf, NaN, 0 and such as are flushed."""
    torch.manual_seed(7)
    x = (torch.randn(shape) * torch.logspace(-5, 1, shape[1])).to(device, dtype)
    flat = x.view(-1)
    flat[::317], flat[::223], flat[::29], flat[5::31] = INF, NAN, 0.0, 1e-7
    return x


GRADIENTS = [
    ((128, 64), False, E5M2, BF16), ((130, 72), False, E4M3, FP32), ((61, 36), True, E5M2, FP32),
    ((3, 5), False, E4M3, FP16), ((128, 128), True, E4M3, BF16), ((0, 8), False, E5M2, BF16),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "column_major", "kind", "dtype"), GRADIENTS, ids=str)
def test_gradients_are_quantised_and_packed_whatever_is_in_them(shape, column_major, kind, dtype, device):
    def make():
        g = special(device, dtype, *shape) if shape[0] else torch.zeros(shape, device=device, dtype=dtype)
        return g.t().contiguous().t() if column_major else g

    def packing():
        g = make()
        return g, ops.amax(g), torch.tensor([2**40 + 17], device=device), kind, "sm90", True, False

    agree(*both("amax", lambda: (make(),)))
    agree(*both("quantise", lambda: (make(), ops.amax(make()), kind, "both")))
    agree(*both("quantise_pack", packing))


@pytest.mark.parametrize("turned", [False, True])
def test_tiles_may_cover_half_an_atom(turned, device, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS_BOTH", Tile(64, 128, 4))
    monkeypatch.setattr(tiles, "ROWS_ALONG", Tile(64, 64, 4))

    def make():
        torch.manual_seed(3)
        g = torch.randn(90, 70, device=device).to(BF16)
        g = g.t().contiguous().t() if turned else g
        return g, ops.amax(g), torch.tensor([5], device=device), E5M2, "sm90", True, True

    agree(*both("quantise_pack", make), exact=False)


@pytest.mark.parametrize(("tokens", "hidden", "gate", "act"), [(64, 64, "first", "silu"), (70, 64, "second", "gelu")])
def test_the_gradient_of_a_glu_goes_straight_into_eight_bits(tokens, hidden, gate, act, device):
    torch.manual_seed(6)
    dh, z = (torch.randn(tokens, n * hidden, device=device).to(BF16) for n in (1, 2))
    seed = torch.tensor([9], device=device)
    with providers.only("triton"):
        amax = ops.glu_backward_amax(dh, z, act, gate)
        found = ops.glu_backward_quantise_pack(dh, z, amax, act, gate, seed, E5M2, "sm90", True)
        dz = ops.glu_backward(dh, z, act, gate)
    # The kernel's own dz may be a rounding off the reference's; what follows from it may not.
    with providers.only("reference"):
        agree([amax], [ops.amax(dz)])
        agree(found, ops.quantise_pack(dz, amax, seed, E5M2, "sm90", True, True), exact=False)


def weights_of(rows, k, select, search, layout, dtype, device, format, betas=()):
    """Arguments of pack_weights_fp8_ for one operand, its buffers filled with what nothing of it is."""
    torch.manual_seed(4)
    weights = [torch.randn((n, k) if layout == "out_in" else (k, n), device=device).to(dtype) for n in rows]
    both_ways = select == "transposable"
    heights = [n // 4 if both_ways else n for n in rows]
    patterns = [torch.randint(0, 90 if both_ways else 6, (n, k // 4), dtype=torch.uint8).to(device) for n in heights]
    form, total, place = FORMATS[format], sum(rows), torch.device(device)
    operand = form.empty(total, k, E4M3, place)
    turned = FORMATS[form.transposed].empty(k, total, E4M3, place) if both_ways else ()
    for buffer in (*operand, *turned):
        buffer.view(torch.uint8).fill_(3)  # what is not written shows
    lists = [[x] for x in (*operand, *turned)] + ([] if both_ways else [[], []])
    scales = [torch.tensor(beta, device=device) for beta in betas]
    descales = [torch.zeros(1, device=device)]
    return weights, [len(rows)], patterns, *lists, descales, scales, select, search, format, layout


BOTH_WAYS = [
    ((128, 64), "sm90", True, "out_in", FP32), ((40, 24), "sm90", False, "in_out", BF16),
    ((128, 128), "sm90_gated", False, "out_in", BF16), ((24, 24), "sm90_gated", True, "in_out", FP32),
    ((80,), "sm90_gated", True, "out_in", BF16),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "format", "search", "layout", "dtype"), BOTH_WAYS, ids=str)
def test_stacked_weights_are_searched_scaled_and_packed_both_ways(rows, format, search, layout, dtype, device):
    arguments = rows, 72, "transposable", search, layout, dtype, device, format
    agree(*both("pack_weights_fp8_", lambda: weights_of(*arguments)))


BY_ROWS = [
    ((64, 64), "sm90", "soft_threshold", True, "out_in"), ((128, 8), "sm90", "magnitude", True, "in_out"),
    ((72, 72), "sm90_gated", "soft_threshold", True, "in_out"), ((64, 64), "sm90_gated", "magnitude", False, "out_in"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "format", "select", "search", "layout"), BY_ROWS, ids=str)
def test_stacked_weights_are_scaled_and_packed_by_rows(rows, format, select, search, layout, device):
    betas = (1.5, 0.75) if select == "soft_threshold" else ()
    arguments = rows, 136, select, search, layout, BF16, device, format, betas
    agree(*both("pack_weights_fp8_", lambda: weights_of(*arguments)))


def test_weights_with_inf_and_nan_are_packed_as_the_reference_does(device):
    def make():
        arguments = weights_of((64,), 64, "transposable", True, "out_in", FP32, device, "sm90")
        w = arguments[0][0]
        w[5, 9], w[40, 40], w[33, 1], w[32, 0] = NAN, INF, INF, -INF
        return arguments

    agree(*both("pack_weights_fp8_", make))


def test_what_no_kernel_takes_is_refused_in_a_sentence(device):
    g = torch.randn(64, 32, device=device, dtype=torch.float64)
    amax, seed = torch.ones(1, device=device), torch.tensor([1], device=device)

    def refusal(op, *args):
        return providers.refusal(op, "triton", *args)

    assert "float64" in refusal("quantise", g, amax, E4M3, "row")
    assert "sm80" in refusal("quantise_pack", g.float(), amax, seed, E4M3, "sm80", True, False)
    odd = weights_of((24,), 64, "transposable", True, "out_in", FP32, device, "sm90_gated")
    assert "24 rows" in refusal("pack_weights_fp8_", *odd)
    soft = weights_of((40, 40), 64, "soft_threshold", True, "out_in", FP32, device, "sm90", (1.0, 2.0))
    assert "one scale" in refusal("pack_weights_fp8_", *soft)
