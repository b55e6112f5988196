"""Selection is optimal, legal and settles every tie, NaN, Inf and signed zero the documented way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s24compile import ops
from s24compile.kernels.ops import transposable_patterns
from tests.kernels.oracles import all_transposable_patterns, best_patterns, blocks_of, two_largest

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INF, NAN = float("inf"), float("nan")


def assert_transposable(mask):
    blocks = blocks_of(mask)
    assert (blocks.sum(2) == 2).all(), "columns keep two"
    assert (blocks.sum(3) == 2).all(), "rows keep two"


def block(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_a_literal_block_keeps_its_heavy_places(device):
    w = block((9, 8, 0, 0), (7, 9, 0, 1), (0, 1, 9, 8), (1, 0, -8, -9)).to(device)
    expected = block((1, 1, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1), (0, 0, 1, 1)).bool()
    assert torch.equal(ops.transposable_mask(w).cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["normal", "ties", "few values", "all equal", "all negative"])
def test_the_transposable_mask_is_the_best_of_ninety(dtype, kind, device):
    w = {
        "normal": lambda: torch.randn(64, 132),
        "ties": lambda: torch.randint(-3, 4, (256, 256)).float(),
        "few values": lambda: torch.randint(0, 2, (256, 256)).float(),
        "all equal": lambda: torch.full((8, 12), -2.5),
        "all negative": lambda: -torch.rand(64, 64) - 0.5,
    }[kind]().to(dtype)
    found = transposable_patterns(w.to(device)).cpu().long()
    expected = best_patterns(w)
    if kind == "normal":  # sums of four fp32 roundings; two patterns may be closer than that
        patterns = all_transposable_patterns().double()
        kept = (blocks_of(w.double().abs()) * patterns[found]).sum((2, 3))
        best = (blocks_of(w.double().abs()) * patterns[expected]).sum((2, 3))
        assert (kept >= best * (1 - 4 * torch.finfo(torch.float32).eps)).all()
        assert (found != expected).sum() <= 1, "only rounding may choose another one"
    else:
        assert torch.equal(found, expected), "equal sums take the lowest number"


def test_every_pattern_can_win(device):
    patterns = all_transposable_patterns()
    w = patterns.float().permute(1, 0, 2).reshape(4, 360).to(device)
    assert torch.equal(transposable_patterns(w).cpu().flatten(), torch.arange(90, dtype=torch.uint8))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -3.0, 0.5, 4.0]), min_size=16, max_size=16))
def test_exact_sums_agree_with_brute_force(numbers):
    w = torch.tensor(numbers).reshape(4, 4)
    assert transposable_patterns(w).item() == best_patterns(w).item()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=16, max_size=16))
def test_any_floats_give_a_legal_mask_that_keeps_a_lone_inf(numbers):
    w = torch.tensor(numbers, dtype=torch.float32).reshape(4, 4)
    mask = ops.transposable_mask(w)
    assert_transposable(mask)
    if w.isnan().any():
        assert transposable_patterns(w).item() == 0, "a NaN takes the first pattern"
    elif w.isinf().sum() == 1 and w[w.isfinite()].abs().sum().isfinite():  # else sums beyond the range compete with it
        assert mask[w.isinf()].all()
    rows = ops.magnitude_mask(w)
    assert (rows.unflatten(-1, (-1, 4)).sum(-1) == 2).all()
    for group, kept in zip(w, rows, strict=True):
        if not group.isnan().any() and group.isinf().sum() == 1:
            assert kept[group.isinf()].all()


def test_a_nan_leaves_other_blocks_alone(device):
    w = torch.randn(8, 8)
    before = transposable_patterns(w.to(device)).cpu()
    w[5, 6] = NAN
    after = transposable_patterns(w.to(device)).cpu()
    assert after[1, 1] == 0
    before[1, 1] = 0
    assert torch.equal(before, after)


def test_gaussian_weights_keep_the_papers_share_of_their_norm(device):
    w = torch.randn(1024, 1024, device=device)

    def share(mask):
        return (w.abs() * mask).sum().item() / w.abs().sum().item()

    # docs/math.md. A block's share has deviation about 0.04; the mean of 65536 blocks 2e-4.
    assert share(ops.transposable_mask(w)) == pytest.approx(0.7024, abs=1e-3)
    assert share(ops.magnitude_mask(w)) == pytest.approx(0.7445, abs=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_magnitude_keeps_the_two_largest_and_ties_keep_the_lower_index(dtype, ties, device):
    w = (torch.randint(-2, 3, (40, 64)) if ties else torch.randn(40, 64)).to(dtype)
    assert torch.equal(ops.magnitude_mask(w.to(device)).cpu(), two_largest(w))


@pytest.mark.parametrize(
    ("group", "kept"),
    [
        ((1, 2, 3, 4), "0011"),
        ((-4, 1, -3, 2), "1010"),
        ((0.0, -0.0, 0.0, -0.0), "1100"),
        ((-0.0, 0.0, 1, 0.0), "1010"),
        ((5, 5, 5, 5), "1100"),
        ((1, INF, 0, 2), "0101"),
        ((-INF, INF, INF, 0), "1100"),
        ((NAN, 1, 2, 3), "1001"),
        ((NAN, NAN, NAN, NAN), "1100"),
        ((1, INF, 2, NAN), "0101"),
    ],
)
def test_literal_groups(group, kept, device):
    mask = ops.magnitude_mask(torch.tensor([group], dtype=torch.float32, device=device))
    assert "".join(str(int(bit)) for bit in mask[0]) == kept


def test_row_wise_ops_take_leading_dims(device):
    w = torch.randn(2, 3, 8, device=device)
    assert torch.equal(ops.magnitude_mask(w), ops.magnitude_mask(w.flatten(0, 1)).view(2, 3, 8))
    assert torch.equal(ops.soft_threshold(w), ops.soft_threshold(w.flatten(0, 1)).view(2, 3, 8))
    assert ops.magnitude_mask(w[0, 0]).shape == (8,)


@pytest.mark.parametrize("op", [ops.transposable_mask, ops.magnitude_mask, ops.soft_threshold])
def test_strides_do_not_matter(op, device):
    w = torch.randn(70, 140, device=device)[1:65, 4:132]
    assert torch.equal(op(w), op(w.contiguous()))
    assert torch.equal(op(w.t()), op(w.t().contiguous()))
    assert torch.equal(op(w[:, :1].expand(-1, 8)), op(w[:, :1].expand(-1, 8).contiguous()))


def test_soft_threshold_of_literal_groups(device):
    w = torch.tensor([[1.0, -2, 3, -4], [5, 5, 5, 1], [0, 0, 0, -7], [2, -2, 2, -2]], device=device)
    expected = torch.tensor([[0.0, 0, 1, -2], [0, 0, 0, 0], [0, 0, 0, -7], [0, 0, 0, 0]])
    assert torch.equal(ops.soft_threshold(w).cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_threshold_subtracts_the_second_smallest(dtype, device):
    w = torch.randn(33, 48).to(dtype)
    groups = w.double().unflatten(1, (-1, 4))
    threshold = groups.abs().sort(-1).values[..., 1:2]
    expected = (groups.sign() * (groups.abs() - threshold).clamp(min=0)).flatten(1)
    wide = dtype if dtype == torch.float64 else torch.float32
    # One subtraction in `wide`, one rounding to `dtype`.
    allowed = torch.finfo(wide).eps * groups.abs().max() + torch.finfo(dtype).eps * expected.abs()
    found = ops.soft_threshold(w.to(device)).cpu()
    assert found.dtype == dtype
    assert ((found.double() - expected).abs() <= allowed).all()


def test_soft_threshold_is_continuous_across_a_swap_and_two_of_four_with_nan(device):
    near, over = (torch.tensor([[0.1, 1.0, 1.0 + d, 2.0]], device=device) for d in (-1e-6, 1e-6))
    assert (ops.soft_threshold(near) - ops.soft_threshold(over)).abs().max() < 3e-6
    poisoned = ops.soft_threshold(torch.tensor([[NAN, 1.0, NAN, NAN]], device=device))
    assert (poisoned != 0).sum() <= 2


def test_soft_threshold_passes_the_gradient_straight_through(device):
    w = torch.randn(4, 8, device=device, requires_grad=True)
    grad = torch.randn(4, 8, device=device)
    ops.soft_threshold(w).backward(grad)
    assert torch.equal(w.grad, grad)


def test_soft_threshold_scale_is_the_papers(device):
    normal, uniform = torch.randn(1024, 1024, device=device), torch.rand(1024, 1024, device=device)
    scale = ops.soft_threshold_scale(normal)
    assert scale.shape == ()
    assert scale.dtype == torch.float32
    # docs/math.md, S-STE: 1.484 and 7/4; a mean over 262144 groups is good to about 1e-3.
    assert scale.item() == pytest.approx(1.484, abs=4e-3)
    assert ops.soft_threshold_scale(uniform).item() == pytest.approx(1.75, abs=4e-3)
    assert ops.soft_threshold_scale(torch.ones(4, 4, device=device)).item() == 1.0, "S is 0: no scale"
    w = normal[:8, :8].double()
    s = ops.soft_threshold(w)
    assert ops.soft_threshold_scale(w).item() == pytest.approx(((w * s).sum() / (s * s).sum()).item(), rel=1e-6)


def test_flip_rate_counts_changed_places(device):
    before = torch.zeros(4, 8, dtype=torch.bool, device=device)
    after = before.clone()
    after[0, :3] = True
    assert ops.flip_rate(before, after) == 3 / 32
    assert isinstance(ops.flip_rate(before, before), float)
    assert ops.flip_rate(before[:0], before[:0]) == 0.0
