"""Eight-bit floats: what a number becomes, against a table of all of them; passes and products against fp64.

Legend: u half a step of a dtype over the number; T tokens, F features.
"""

import math

import pytest
import torch

from s24compile.kernels import ops, providers
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.mvue.reference import mvue
from s24compile.kernels.scaling import LIMITS, MVUE_HEADROOM, descale_of, finite_amax, quantised, scale_of
from tests.closeness import assert_as_close_as_torch
from tests.kernels.scaled_closeness import assert_product

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
DTYPES = [E4M3, E5M2]
INF, NAN = math.inf, math.nan
HALF_STEP = {E4M3: 2.0**-4, E5M2: 2.0**-3}
"""u of normal numbers: 3 and 2 bits behind the point."""
HALF_LEAST = {E4M3: 2.0**-10, E5M2: 2.0**-17}
"""Half of the smallest number above 0, hence of any step among the subnormal ones."""


def every_finite(dtype):
    """All finite numbers of a dtype in ascending order, fp64, and whether the code of each is even."""
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.view(dtype).double()
    kept = numbers.isfinite() & (codes != 128)  # -0
    numbers, order = numbers[kept].sort()
    return numbers, codes[kept][order] % 2 == 0


def by_the_table(x, scale, dtype):
    """The nearest of all finite numbers to the fp32 product; of two as near, the one of even code."""
    numbers, even = every_finite(dtype)
    product = (x.float() * scale).double().clamp(numbers[0], numbers[-1])
    above = torch.searchsorted(numbers, product).clamp(1, len(numbers) - 1)
    low, high = numbers[above - 1], numbers[above]
    middle = (low + high) / 2
    up = (product > middle) | ((product == middle) & even[above])
    return torch.where(up, high, low)


def bound(x, scale, dtype):
    """How far from x a quantised x may be: half a step, the fp32 product's rounding, and that of descale."""
    return (HALF_STEP[dtype] + 2.0**-22) * x.double().abs() + HALF_LEAST[dtype] / scale.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 3.7, 2.0**-20, 1e30])
def test_a_number_becomes_the_nearest_one_of_eight_bits(scale, dtype, device):
    numbers, _ = every_finite(dtype)
    middles = (numbers[1:] + numbers[:-1]) / 2
    around = [middles * factor for factor in (1.0, 1 + 2.0**-20, 1 - 2.0**-20)]
    exact = torch.cat([numbers, *around, torch.tensor([1e30, -1e30])])
    x = (exact.float() / scale).to(device)
    found = quantised(x, scale, dtype).double().cpu()
    assert torch.equal(found, by_the_table(x.cpu(), torch.tensor(scale), dtype))


@pytest.mark.parametrize("source", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_fills_the_range_and_comes_back_within_half_a_step(dtype, source, device):
    x = (torch.randn(40, 72) * torch.logspace(-6, 1, 72)).to(device, source)
    amax = ops.amax(x)
    assert amax.shape == (1,)
    assert amax.dtype == torch.float32
    assert amax.item() == x.float().abs().max().item()
    q, q_t, descale = ops.quantise(x, amax, dtype, "both")
    assert q.float().abs().max().item() == LIMITS[dtype], "the largest number is the dtype's"
    assert torch.equal(descale, 1 / (torch.tensor([LIMITS[dtype]], device=device) / amax))
    error = (q.double() * descale.double() - x.double()).abs()
    assert bool((error <= bound(x, scale_of(amax, dtype), dtype)).all())
    assert torch.equal(q_t.view(torch.uint8), q.view(torch.uint8).t())
    for matrix in (q, q_t):
        assert matrix.stride(1) == 1
        assert matrix.stride(0) % 16 == 0, "TMA reads rows that begin on 16 bytes"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tensor_of_zeros_has_scale_one(dtype, device):
    q, _, descale = ops.quantise(torch.zeros(4, 8, device=device), torch.zeros(1, device=device), dtype, "row")
    assert descale.item() == 1.0
    assert not q.float().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [INF, -INF, NAN])
def test_inf_and_nan_become_nan_and_leave_the_rest_as_it_was(poison, dtype, device):
    x = torch.randn(12, 20, device=device)
    marked = x.clone()
    marked[3, 4] = marked[7, 0] = poison
    assert torch.equal(ops.amax(marked), ops.amax(torch.where(marked.isfinite(), marked, 0.0)))
    (clean, _, _), (found, _, _) = (ops.quantise(t, ops.amax(marked), dtype, "row") for t in (x, marked))
    assert torch.equal(found.float().isnan(), ~marked.isfinite())
    assert torch.equal(found.float()[marked.isfinite()], clean.float()[marked.isfinite()])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("amax", [0.0, 1e-45, 1e-38, 1e-30, 0.01, 100.0, 3.4e38, INF, NAN])
def test_no_amax_whatever_makes_a_finite_number_wrap(amax, dtype, device):
    x = torch.tensor([[1.0, -1.0, 1e-3, -3e38, 3e38, 0.0, 1e-45, -0.25]], device=device)
    q, _, descale = ops.quantise(x, torch.tensor([amax], device=device), dtype, "row")
    assert bool(q.float().isfinite().all())
    assert 2.0**-126 <= descale.item() < INF
    assert bool((q.float() * x >= 0).all()), "the sign stays"
    larger = x.abs() * scale_of(torch.tensor([amax]), dtype).to(device) >= LIMITS[dtype]
    assert bool((q.float().abs()[larger] == LIMITS[dtype]).all()), "what is too large saturates"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
def test_an_estimate_in_eight_bits_is_that_of_mvue_and_never_saturates(spread, dtype, device):
    g = (torch.randn(68, 24) * (spread * torch.randn(68, 24)).exp()).to(device, torch.bfloat16)
    g[:4] = g.abs().max()  # a group of four equal values is where an estimate is twice the amax
    seed = torch.tensor([11], device=device)
    q, values, metadata, descale, descale_p, sums = ops.quantise_pack(g, ops.amax(g), seed, dtype, "sm90", True, True)
    exact = mvue(g.float().t(), seed, -1).double()
    found = ops.unpack(values, metadata, 24, 68, "sm90").double() * descale_p.double()
    scale = scale_of(ops.amax(g), dtype, MVUE_HEADROOM)
    assert bool(((found - exact).abs() <= bound(exact, scale, dtype)).all())
    assert (values.float().abs() == LIMITS[dtype]).any(), "the headroom is used up"
    assert descale_p.item() == 2 * descale.item()
    expected, _, _ = ops.quantise(g, ops.amax(g), dtype, "row")
    assert torch.equal(q.view(torch.uint8), expected.view(torch.uint8))
    assert_as_close_as_torch(sums, g.sum(0, dtype=torch.float32), g.double().sum(0))


def test_an_estimate_of_a_poisoned_group_is_nan_and_no_other(device):
    g = torch.randn(16, 8, device=device)
    g[5, 2], g[9, 3] = INF, NAN
    found = ops.quantise_pack(g, ops.amax(g), torch.tensor([1], device=device), E5M2, "sm90", True, False)
    dense = ops.unpack(found[1], found[2], 8, 16, "sm90").float().unflatten(1, (4, 4)).isnan().any(-1)
    expected = torch.zeros(8, 4, dtype=torch.bool, device=device)
    expected[2, 1] = expected[3, 2] = True
    assert torch.equal(dense, expected)
    assert found[0].float().isnan().sum() == 2


@pytest.mark.parametrize(("gate", "act"), [("first", "silu"), ("second", "gelu")])
def test_the_gradient_of_a_glu_is_quantised_as_if_it_had_been_written(gate, act, device):
    dh, z = torch.randn(3, 12, 16).to(device, torch.bfloat16), torch.randn(3, 12, 32).to(device, torch.bfloat16)
    dz = ops.glu_backward(dh, z, act, gate).view(36, 32)
    amax, seed = ops.glu_backward_amax(dh, z, act, gate), torch.tensor([3], device=device)
    torch.testing.assert_close(amax, ops.amax(dz))
    found = ops.glu_backward_quantise_pack(dh, z, amax, act, gate, seed, E5M2, "sm90", True)
    for x, y in zip(found, ops.quantise_pack(dz, amax, seed, E5M2, "sm90", True, True), strict=True):
        torch.testing.assert_close(x.float(), y.float(), rtol=0.26, atol=1e-5)  # a step, where dz is a rounding off


def packed_weights(select, layout, weights, scales, device):
    """(values, metadata, values_t, metadata_t, descale) of one operand of several weights, patterns searched."""
    rows, k = sum(w.shape[0] for w in weights), weights[0].shape[1]
    stored = [w if layout == "out_in" else w.t().contiguous() for w in weights]
    both = select == "transposable"
    patterns = [
        torch.zeros((w.shape[0] // 4 if both else w.shape[0], k // 4), dtype=torch.uint8, device=device)
        for w in weights
    ]
    values, metadata = ops.pack(torch.zeros(rows, k, device=device), None, E4M3, "sm90")
    turned = ops.pack(torch.zeros(k, rows, device=device), None, E4M3, "sm90") if both else ()
    descale = torch.zeros(1, device=device)
    lists = [[x] for x in turned] if both else [[], []]
    buffers = patterns, [values], [metadata], *lists, [descale]
    ops.pack_weights_fp8_(stored, [len(weights)], *buffers, scales, select, True, "sm90", layout)
    return values, metadata, *(turned or (None, None)), descale


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_weights_are_packed_by_their_amax_both_ways(layout, device):
    weights = [torch.randn(n, 40, device=device) * size for n, size in ((24, 0.02), (16, 0.3))]
    values, metadata, values_t, metadata_t, descale = packed_weights("transposable", layout, weights, [], device)
    whole = torch.cat(weights)
    scale = scale_of(finite_amax(whole), E4M3)
    assert torch.equal(descale, descale_of(scale))
    exact = torch.where(torch.cat([masks.transposable_mask(w) for w in weights]), whole, 0.0)
    found = ops.unpack(values, metadata, 40, 40, "sm90")
    assert bool(((found.double() * descale.double() - exact.double()).abs() <= bound(exact, scale, E4M3)).all())
    turned = ops.unpack(values_t, metadata_t, 40, 40, "sm90")
    assert torch.equal(found.view(torch.uint8), turned.view(torch.uint8).t())


def test_soft_thresholded_weights_are_packed_with_their_betas(device):
    weights = [torch.randn(8, 16, device=device), torch.randn(12, 16, device=device)]
    betas = [torch.tensor(1.5, device=device), torch.tensor(0.75, device=device)]
    values, metadata, _, _, descale = packed_weights("soft_threshold", "out_in", weights, betas, device)
    scaled = [beta * masks.soft_threshold(w).double() for w, beta in zip(weights, betas, strict=True)]
    largest = torch.stack([beta * w.abs().max() for w, beta in zip(weights, betas, strict=True)]).max().reshape(1)
    scale = scale_of(largest, E4M3)
    assert torch.equal(descale, descale_of(scale))
    found = ops.unpack(values, metadata, 20, 16, "sm90").double() * descale.double()
    assert bool(((found - torch.cat(scaled)).abs() <= bound(torch.cat(scaled), scale, E4M3)).all())


class Product:
    """A packed operand [m, k] times B [k, n], both in eight bits, and the fp64 values that they stand for."""

    def __init__(self, device, types=(E4M3, E5M2), m=48, k=96, n=20):
        w, x = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        scale = scale_of(finite_amax(w), types[0])
        self.mask, self.descale_a = masks.magnitude_mask(w), descale_of(scale)
        self.values, self.metadata = ops.pack(w * scale, self.mask, types[0], "sm90")
        q, _, self.descale_b = ops.quantise(x, ops.amax(x), types[1], "row")
        self.args = self.values, self.metadata, m, k, "sm90", self.descale_a, q.t(), self.descale_b
        a = ops.unpack(self.values, self.metadata, m, k, "sm90")
        self.a, self.b = a.float() * self.descale_a, q.float().t() * self.descale_b
        self.types, self.w, self.x, self.scale = types, w, x, scale


@pytest.mark.parametrize("types", [(E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3)], ids=str)
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float32], ids=str)
def test_a_product_is_that_of_what_its_operands_stand_for(out, types, device):
    p = Product(device, types)
    bias = torch.randn(48, device=device)
    for added, layout in ((None, "row"), (bias, "col")):
        found = ops.scaled_mm(*p.args, added, layout, out, False)
        assert_product("product", found, p.a, p.b, 0.0 if added is None else added[:, None])
        assert found.stride() == ((20, 1) if layout == "row" else (1, 48))


def test_quantising_both_operands_costs_what_half_a_step_of_each_can(device):
    """|A B - a b| <= sum |A| |dB| + |dA| |B| + |dA| |dB|, where |dX| is the bound of one quantised number."""
    p = Product(device)
    masked, x = torch.where(p.mask, p.w, 0.0).double(), p.x.double().t()
    d_a, d_b = bound(masked, p.scale, p.types[0]), bound(x, scale_of(ops.amax(p.x), p.types[1]), p.types[1])
    allowed = masked.abs() @ d_b + d_a @ x.abs() + d_a @ d_b
    found = ops.scaled_mm(*p.args, None, "row", torch.float32, True)
    assert bool(((found.double() - masked @ x).abs() <= allowed).all())
    typical = ((found.double() - masked @ x).norm() / (masked @ x).norm()).item()
    assert typical < HALF_STEP[p.types[0]] + HALF_STEP[p.types[1]], "errors of either sign do not add up"


def test_epilogues_are_those_of_the_wide_product_and_give_its_amax(device):
    # Whatever the device: kernels are held to it in test_scaled_cutlass.py.
    with providers.only("reference"):
        p = Product(device)
        dense = ops.scaled_mm(*p.args, None, "row", torch.float32, False)
        bias, z = torch.randn(48, device=device), torch.randn(48, 20, device=device)
        for act in ("gelu", "silu", "relu"):
            found_z, h, amax = ops.scaled_mm_act(*p.args, bias, act, "col", torch.bfloat16, False)
            exact = ops.act(dense + bias[:, None], act)
            torch.testing.assert_close(found_z, (dense + bias[:, None]).bfloat16())
            torch.testing.assert_close(h, exact.bfloat16())
            torch.testing.assert_close(amax, exact.abs().max().reshape(1))
            dz, sums, amax = ops.scaled_mm_dact(*p.args, z, act, "row", True, False)
            exact = ops.act_backward(dense, z, act)
            torch.testing.assert_close(dz, exact)
            torch.testing.assert_close(sums, exact.sum(1), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(amax, exact.abs().max().reshape(1))
        torch.testing.assert_close(ops.scaled_mm_add(*p.args, z, False), dense + z)
        found_z, h, amax = ops.scaled_mm_glu(*p.args, "silu", "second", torch.float32, False)
        torch.testing.assert_close(found_z, dense)
        torch.testing.assert_close(h, ops.glu(dense.t().contiguous(), "silu", "second").t())
        torch.testing.assert_close(amax, h.abs().max().reshape(1))
        wide = torch.randn(20, 96, device=device)
        dz, amax = ops.scaled_mm_dglu(*p.args, wide.t(), "gelu", "first", False)
        exact = ops.glu_backward(dense.t().contiguous(), wide, "gelu", "first").t()
        torch.testing.assert_close(dz, exact)
        torch.testing.assert_close(amax, exact.abs().max().reshape(1))


@pytest.mark.parametrize("types", [(E4M3, E4M3), (E5M2, E4M3)], ids=str)
@pytest.mark.parametrize("shape", [(32, 64, 48), (7, 22, 20)], ids=str)
def test_a_dense_product_is_that_of_what_its_operands_stand_for(shape, types, device):
    m, k, n = shape
    x, w, bias = torch.randn(m, k, device=device), torch.randn(n, k, device=device), torch.randn(n, device=device)
    a, _, descale_a = ops.quantise(x, ops.amax(x), types[0], "row")
    b, _, descale_b = ops.quantise(w, ops.amax(w), types[1], "row")
    for added in (None, bias):
        found = ops.scaled_dense(a, descale_a, b.t(), descale_b, added, torch.bfloat16, True)
        shift = 0.0 if added is None else added
        assert_product("product", found, a.float() * descale_a, b.float().t() * descale_b, shift)
