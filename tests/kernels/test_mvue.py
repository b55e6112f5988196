"""MVUE is 2:4, unbiased, of least variance, and its draws depend on the seed and the element's place only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s24compile import ops
from s24compile.kernels.mvue import reference
from tests.kernels.oracles import ANY_ROWS, mvue_probabilities, mvue_variance

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")
DELTA = 1e-9
"""Chance that a statistical test here fails although the code is right (seeds are fixed, so it would always fail)."""

GROUPS = torch.tensor(
    [
        [1.0, 2.0, 3.0, 4.0],
        [1.0, 1.0, 1.0, 1.0],
        [-10.0, 1.0, 2.0, -3.0],
        [1.0, -2.0, 9.0, 1.0],
        [0.0, 1.0, -2.0, 4.0],
        [3.0, 0.0, 0.0, -5.0],
        [0.0, 0.0, 1e-30, 0.0],
        [1e-20, 3e-20, -2e-20, 1e-20],
        [0.5, 100.0, 0.25, 0.125],
        [2.0, 2.0, 4.0, 0.0],
        [1e30, -2e30, 3e30, 1e30],
        [1.0, 1e-6, 1e-6, -1.0],
    ]
)


def many_draws(groups, count, device):
    """[n, 4] -> [count, n, 4] independent estimates: each repetition is another row of one call."""
    return ops.mvue(groups.to(device).repeat(count, 1), seed=20240604).view(count, *groups.shape).cpu()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exactly_two_of_four_are_kept(dtype, device):
    g = torch.randn(257, 64).to(device, dtype)
    kept = (ops.mvue(g, seed=1) != 0).unflatten(1, (-1, 4)).sum(-1)
    assert (kept == 2).all()


def test_places_are_kept_with_the_papers_probabilities_and_values(device):
    """Bernstein: with chance 1 - d a frequency of n draws is off by < sqrt(2 p (1 - p) L / n) + L / 3n, L = ln(2/d)."""
    count = 100_000
    drawn, p = many_draws(GROUPS, count, device), mvue_probabilities(GROUPS)
    expected = torch.where(p > 0, GROUPS.double() / p, 0.0).float()
    kept = drawn != 0
    # One rounding of h, sums of three roundings in it.
    assert (
        (drawn - expected).abs()[kept] <= 4 * torch.finfo(torch.float32).eps * expected.abs().expand_as(drawn)[kept]
    ).all()
    log = torch.tensor(2 * p.numel() / DELTA).log()
    bound = (2 * p * (1 - p) * log / count).sqrt() + log / (3 * count)
    assert ((kept.double().mean(0) - p).abs() <= bound).all(), "hence the mean of the estimates is g itself"


def test_the_paper_probabilities_sum_to_two_and_certain_places_are_always_kept(device):
    p = mvue_probabilities(GROUPS)
    two = (GROUPS != 0).sum(1) >= 2
    assert torch.allclose(p.sum(1)[two], torch.tensor(2.0, dtype=torch.float64))
    drawn = many_draws(GROUPS, 4096, device)
    certain = p >= 1
    assert (drawn[:, certain] == GROUPS[certain]).all(), "p = 1 keeps the number as it is"


@pytest.mark.parametrize(
    ("name", "share", "tolerance"), [("normal", 0.474, 2e-3), ("lognormal", 0.202, 6e-3), ("t3", 0.244, 2e-2)]
)
def test_the_variance_is_the_least_one(name, share, tolerance, device):
    """The shares of |x|^2 in docs/math.md. Tolerances: the spread over seeds; t3 has no fourth moment."""
    draw = {
        "normal": lambda: torch.randn(2**18, 4),
        "lognormal": lambda: torch.randn(2**18, 4).exp(),
        "t3": lambda: torch.distributions.StudentT(3.0).sample((2**20, 4)),
    }[name]
    g = draw()
    energy = g.double().square().sum()
    exact = mvue_variance(g)
    assert (exact.sum() / energy).item() == pytest.approx(share, abs=tolerance)
    squared = (ops.mvue(g.to(device), seed=7).cpu().double() - g.double()).square().sum(1)
    deviation = (squared - exact).std() / len(g) ** 0.5
    assert abs((squared - exact).mean()) < 6 * deviation, "the estimator has the variance that the formula gives"


def test_no_other_probabilities_have_less_variance():
    g = torch.randn(4096, 4).double()
    p, least = mvue_probabilities(g), mvue_variance(g)
    for _ in range(20):
        step = torch.randn_like(p)
        other = p + 0.05 * (step - step.mean(1, keepdim=True))
        feasible = ((other > 0) & (other <= 1)).all(1)
        variance = (g.square() * (1 / other - 1)).sum(1)
        assert feasible.sum() > 100
        assert (variance >= least - 1e-12)[feasible].all()


finite = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**120), max_value=2.0**120)
uniform = st.one_of(st.integers(0, 2**24 - 1), st.sampled_from([0, 1, 2**23, 2**24 - 1])).map(lambda n: n * 2.0**-24)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(finite, st.sampled_from([0.0, -0.0, 1.0, 1e-45])), min_size=4, max_size=4), uniform)
def test_any_numbers_and_any_draw_keep_two_and_never_a_zero_for_a_number(numbers, u):
    g = torch.tensor([[numbers]], dtype=torch.float32)
    values, places = reference._kept(g, torch.tensor([[u]]), 2)
    first, second = places.flatten().tolist()
    assert 0 <= first < second <= 3
    nonzero = int((g != 0).sum())
    assert int((g[0, 0, [first, second]] != 0).sum()) == min(nonzero, 2), "zeros are kept only where nothing competes"
    a = g.double().abs()
    largest, total = a.max(), a.sum()
    if largest > (total - largest) * (1 + 1e-6):
        at = a.argmax().item()
        assert at in (first, second), "one that outweighs the others is kept for certain"
        assert values.flatten()[(first, second).index(at)] == g.flatten()[at]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32), min_size=4, max_size=4), uniform)
def test_nan_and_inf_poison_their_group_and_no_code(numbers, u):
    g = torch.tensor([[numbers]], dtype=torch.float32)
    values, places = reference._kept(g, torch.tensor([[u]]), 2)
    first, second = places.flatten().tolist()
    assert 0 <= first < second <= 3
    if not g.isfinite().all():
        assert values.isnan().all()


@pytest.mark.parametrize(
    ("group", "expected"),
    [((0.0, 0, 0, 0), (0.0, 0, 0, 0)), ((0.0, 0, -7, 0), (0.0, 0, -7, 0)), ((3.0, 0, 0, 2), (3.0, 0, 0, 2))],
)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_groups_with_at_most_two_non_zeros_are_kept_exactly(group, expected, scale, device):
    g = torch.tensor([group], device=device) * scale
    assert torch.equal(ops.mvue(g, seed=5), torch.tensor([expected], device=device) * scale)


def test_it_is_scale_free(device):
    g = torch.randn(64, 64, device=device)
    for power in (-100, -20, 20, 100):
        scaled = ops.mvue(g * 2.0**power, seed=9)
        assert torch.equal(scaled * 2.0**-power, ops.mvue(g, seed=9))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [0, 1, 4, 37, 64, 300])
def test_mvue_pack_is_mvue_of_the_transpose(dtype, tokens, device):
    g = torch.randn(tokens, 20).to(device, dtype)
    padded = torch.nn.functional.pad(g, (0, 0, 0, -tokens % 4))
    packed = ops.mvue_pack(g, seed=3)
    assert packed.shape == (20, tokens)
    expected = ops.mvue(padded.t(), seed=3)
    assert torch.equal(ops.unpack(packed), expected[:, :tokens])
    assert torch.equal(expected, ops.mvue(padded, dim=0, seed=3).t())


@pytest.mark.parametrize("format", ANY_ROWS)
def test_large_inputs_draw_the_same_in_pieces(format, device, monkeypatch):
    g, seed = torch.randn(300, 70, device=device), torch.tensor([1], device=device)
    whole, dense = reference.mvue_pack(g, seed, torch.float32, format), reference.mvue(g, seed, 0)
    monkeypatch.setattr(reference, "_CHUNK_GROUPS", 128)
    for ours, theirs in zip(reference.mvue_pack(g, seed, torch.float32, format), whole, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(reference.mvue(g, seed, 0), dense)


@pytest.mark.parametrize("make", [lambda g: g.t(), lambda g: g[4:68, 2:66], lambda g: g[:1].expand(64, -1)], ids="tse")
def test_draws_do_not_depend_on_strides(make, device):
    g = make(torch.randn(72, 72, device=device))
    assert torch.equal(ops.mvue(g, seed=4), ops.mvue(g.contiguous(), seed=4))
    one, other = ops.mvue_pack(g, seed=4), ops.mvue_pack(g.contiguous(), seed=4)
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.metadata, other.metadata)


def test_rows_of_other_dims_are_numbered_in_order(device):
    g = torch.randn(3, 8, 5, device=device)
    flat = g.movedim(1, -1).reshape(15, 8)
    assert torch.equal(ops.mvue(g, dim=1, seed=2), ops.mvue(flat, seed=2).view(3, 5, 8).movedim(-1, 1))
    assert torch.equal(ops.mvue(g, dim=-2, seed=2), ops.mvue(g, dim=1, seed=2))


def test_rows_and_seeds_draw_independently(device):
    g = torch.ones(2000, 4, device=device)
    one, other = ops.mvue(g, seed=1) != 0, ops.mvue(g, seed=2) != 0
    # Two independent draws of equal numbers agree with chance 1/2 (0,2 or 1,3): deviation sqrt(1/4 / 2000).
    for same in ((one == other).all(1), (one[:-1] == one[1:]).all(1)):
        assert abs(same.float().mean().item() - 0.5) < 6 * 0.5 / 2000**0.5


def test_seeds_are_ints_tensors_or_torchs_generator(device):
    g = torch.randn(64, 64, device=device)
    fixed = ops.mvue(g, seed=12)
    assert torch.equal(fixed, ops.mvue(g, seed=torch.tensor(12)))
    assert torch.equal(fixed, ops.mvue(g, seed=torch.tensor([12], dtype=torch.int32, device=device)))
    assert torch.equal(ops.mvue(g, seed=-1), ops.mvue(g, seed=2**64 - 1)), "a seed is 64 bits"
    torch.manual_seed(3)
    first, second = ops.mvue(g), ops.mvue(g)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(first, ops.mvue(g))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_gpu_draws_what_a_cpu_draws(dtype):
    g = torch.randn(512, 1024).to(dtype)
    cpu, gpu = ops.mvue(g, seed=8), ops.mvue(g.cuda(), seed=8).cpu()
    packed = ops.unpack(ops.mvue_pack(g.t().cuda(), seed=8)).cpu()
    for found in (gpu, packed):
        differs = (found != cpu).unflatten(1, (-1, 4)).any(-1)
        # A fused multiply-add may move a draw across an end of an interval: 2^-24 of the unit each, 131072 groups.
        assert differs.sum() <= 2
