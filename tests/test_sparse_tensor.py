"""`to_sparse_semi_structured` keeps what it should; products are those of the dense tensor. (tensor/ has the rest.)"""

import pytest
import torch
from torch.nn import functional as F

from s24compile import Sparse24, ops, to_sparse_semi_structured
from s24compile.errors import ArgumentError, DtypeError, MaskError, OperatorError, OptionError, ShapeError
from s24compile.tensor.scaling import limit_of
from tests.closeness import assert_as_close_as_torch
from tests.kernels.oracles import two_largest

WIDE = [torch.float32, torch.bfloat16, torch.float16]
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]
BYTES = [*FP8, torch.int8]


def make(m=64, k=128, dtype=torch.float32, device="cpu"):
    w = torch.randn(m, k).to(device, dtype)
    return w, torch.where(two_largest(w), w, 0.0)


def exact(*factors):
    return torch.mm(*(factor.double() for factor in factors))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_keep_the_two_largest_of_four_by_default(dtype, device):
    w, pruned = make(dtype=dtype, device=device)
    s = to_sparse_semi_structured(w)
    assert isinstance(s, Sparse24)
    assert (s.shape, s.dtype, s.device, s.requires_grad) == (w.shape, dtype, w.device, False)
    assert s.scale is None
    assert torch.equal(s.to_dense(), pruned)
    assert torch.equal(ops.unpack(s.packed), pruned)


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.uint8, torch.float32, torch.int64], ids=str)
def test_keep_what_a_mask_of_any_dtype_says(mask_dtype, device):
    w, _ = make(device=device)
    mask = ops.transposable_mask(w)
    s = to_sparse_semi_structured(w, mask=mask.to(mask_dtype))
    assert torch.equal(s.to_dense(), torch.where(mask, w, 0.0))


def test_estimate_without_bias_by_mvue(device):
    w, _ = make(8, 64, device=device)
    torch.manual_seed(7)
    one = to_sparse_semi_structured(w, mvue=True).to_dense()
    torch.manual_seed(7)
    again = to_sparse_semi_structured(w, mvue=True).to_dense()
    assert torch.equal(one, again), "torch's generator governs the draws"
    assert int((one != 0).unflatten(1, (-1, 4)).sum(-1).max()) == 2
    draws = 400
    mean = sum(to_sparse_semi_structured(w, mvue=True).to_dense() for _ in range(draws)) / draws
    error = (mean - w).square().sum() / w.square().sum()
    # Expected: the estimator's variance, 0.474 |w|^2 for a Gaussian (docs/math.md), over the number of draws.
    assert error < 2 * 0.474 / draws


@pytest.mark.parametrize("dtype", BYTES, ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6], ids=str)
def test_bring_any_range_to_eight_bits_and_back(dtype, size, device):
    w, pruned = make(device=device)
    s = to_sparse_semi_structured(w * size, dtype=dtype)
    assert s.dtype == dtype
    assert s.kept.float().abs().max() > limit_of(dtype) / 2.1, "the range of the narrow dtype is filled"
    back = s.to_dense()
    assert back.dtype == torch.float32, "to_dense gives the range, and the dtype, of the tensor it was made from"
    amax = float(pruned.abs().max())
    if dtype == torch.int8:
        assert (back / size - pruned).abs().max() <= 0.5001 * amax / 127
    else:
        # Half an ulp of each value; below the normal range, half the smallest subnormal.
        spacing = torch.finfo(dtype).eps * pruned.abs()
        smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps * float(s.scale) / size
        assert ((back / size - pruned).abs() <= 0.5001 * spacing + smallest).all()


@pytest.mark.parametrize("dtype", FP8, ids=str)
def test_scale_float8_by_powers_of_two_so_that_values_are_plain_casts(dtype):
    w, pruned = make()
    s = to_sparse_semi_structured(w, dtype=dtype)
    assert float(s.scale).hex().split("p")[0] == "0x1.0000000000000"
    normal = pruned.abs() >= torch.finfo(dtype).smallest_normal
    assert torch.equal(s.to_dense()[normal], pruned.to(dtype).float()[normal])


@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_leave_a_tensor_of_the_narrow_dtype_as_it_is(dtype, device):
    w = (torch.randn(16, 32) * 20).to(dtype).to(device)
    s = to_sparse_semi_structured(w)
    assert s.scale is None
    assert torch.equal(s.to_dense().float(), torch.where(two_largest(w.float()), w.float(), 0.0))


@pytest.mark.parametrize("content", [0.0, float("inf"), float("nan"), 1e-38], ids=str)
@pytest.mark.parametrize("dtype", BYTES, ids=str)
def test_give_a_usable_scale_to_what_has_none(content, dtype):
    s = to_sparse_semi_structured(torch.full((4, 8), content), dtype=dtype)
    assert bool(torch.isfinite(s.scale))
    assert s.scale > 0
    if content == 0.0:
        assert torch.equal(s.to_dense(), torch.zeros(4, 8))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_multiply_in_both_orders(dtype, strided, device):
    w, d = make(dtype=dtype, device=device)
    s = to_sparse_semi_structured(w)
    b = torch.randn(128, 24).to(device, dtype)
    x = torch.randn(24, 64).to(device, dtype)
    if strided:
        b, x = torch.randn(24, 128).to(device, dtype).t(), torch.randn(64, 24).to(device, dtype).t()
    for got, factors in (
        (torch.mm(s, b), (d, b)),
        (s @ b, (d, b)),
        (torch.mm(b.t(), s.t()), (b.t(), d.t())),
        (b.t() @ s.T, (b.t(), d.t())),
        (torch.mm(x, s), (x, d)),
        (torch.mm(s.t(), x.t()), (d.t(), x.t())),
    ):
        assert_as_close_as_torch(got, torch.mm(*factors), exact(*factors))
    assert torch.mm(b.t(), s.t()).is_contiguous()
    assert_as_close_as_torch(s @ b[:, 0], d @ b[:, 0], d.double() @ b[:, 0].double())
    assert_as_close_as_torch(x[0] @ s, x[0] @ d, x[0].double() @ d.double())


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_add_products_to_any_addend(dtype, device):
    w, d = make(dtype=dtype, device=device)
    s = to_sparse_semi_structured(w)
    x = torch.randn(24, 128).to(device, dtype)
    for size in ((64,), (24, 64), (24, 1), (1,), ()):
        addend = torch.randn(size).to(device, dtype)
        for beta, alpha in ((1, 1), (0.5, 2)):
            got = torch.addmm(addend, x, s.t(), beta=beta, alpha=alpha)
            expected = torch.addmm(addend, x, d.t(), beta=beta, alpha=alpha)
            wide = torch.addmm(addend.double(), x.double(), d.t().double(), beta=beta, alpha=alpha)
            assert_as_close_as_torch(got, expected, wide, f"addend {size}")
    column = torch.randn(24).to(device, dtype)
    expected = torch.addmm(column, d, x.t())
    assert_as_close_as_torch(
        torch.addmm(column, s, x.t()), expected, torch.addmm(column.double(), d.double(), x.t().double())
    )
    nans = torch.full((64,), float("nan"), device=device, dtype=dtype)
    assert not torch.addmm(nans, x, s.t(), beta=0).isnan().any(), "beta = 0 ignores the addend, as torch does"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_round_a_sum_once_whichever_way_the_sparse_operand_lies(dtype, device):
    """A product rounded before the addend comes would differ from the exact sum, rounded, in one element of eight."""
    w, d = make(dtype=dtype, device=device)
    s = to_sparse_semi_structured(w)
    x, y = (torch.randn(24, n, device=device).to(dtype) for n in (64, 128))
    for a, b, dense in ((x, s, (x, d)), (s.t(), x.t(), (d.t(), x.t())), (y, s.t(), (y, d.t())), (s, y.t(), (d, y.t()))):
        product = dense[0].double() @ dense[1].double()
        addend = (30 * torch.randn(product.shape, device=device)).to(dtype)
        for beta, alpha in ((1, 1), (0.5, 2)):
            got = torch.addmm(addend, a, b, beta=beta, alpha=alpha)
            exact = beta * addend.double() + alpha * product
            assert (got != exact.to(dtype)).float().mean() < 0.01
    bias, weight = (30 * torch.randn(128, device=device)).to(dtype), s.t()
    for inference in (False, True):
        with torch.inference_mode(inference):
            got = F.linear(x, weight, bias)
        assert (got != (bias.double() + x.double() @ d.double()).to(dtype)).float().mean() < 0.01


@pytest.mark.parametrize("inference", [False, True], ids=["grad", "inference"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_serve_as_the_weight_of_linear_for_inputs_of_any_strides(inference, bias, device):
    w, d = make(device=device)
    s, b = to_sparse_semi_structured(w), torch.randn(64, device=device) if bias else None
    batches = torch.randn(3, 5, 128, device=device)
    for x in (batches[0], batches, batches.transpose(0, 1), batches.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        with torch.inference_mode(inference):
            got = F.linear(x, s, b)
        expected = F.linear(x.double(), d.double(), None if b is None else b.double())
        assert_as_close_as_torch(got, F.linear(x, d, b), expected)
    assert F.linear(batches[:0], s, b).shape == (0, 5, 64)


def test_broadcast_matmul_over_batches(device):
    w, d = make(device=device)
    s, b = to_sparse_semi_structured(w), torch.randn(2, 3, 128, 5, device=device)
    assert_as_close_as_torch(s @ b, d @ b, d.double() @ b.double())
    assert_as_close_as_torch(b.mT @ s.t(), b.mT @ d.t(), b.double().mT @ d.double().t())


@pytest.mark.parametrize("dtype", FP8, ids=str)
def test_multiply_float8_with_its_scale(dtype, device):
    w, _ = make(device=device)
    s = to_sparse_semi_structured(w * 1e-3, dtype=dtype)
    x = torch.randn(24, 128, device=device).to(torch.float8_e5m2)
    dense, bias = s.to_dense(), torch.randn(64, device=device)
    for got, expected in (
        (torch.mm(x, s.t()), x.double() @ dense.double().t()),
        (s @ x.t(), dense.double() @ x.double().t()),
        (torch.addmm(bias, x, s.t()), bias.double() + x.double() @ dense.double().t()),
        (F.linear(x, s, bias), bias.double() + x.double() @ dense.double().t()),
    ):
        assert got.dtype == torch.float32
        assert_as_close_as_torch(got, expected.float(), expected)


def test_multiply_int8_exactly(device):
    w = torch.full((16, 4096), 127, dtype=torch.int8, device=device)
    w[:, 0] = 126
    s = to_sparse_semi_structured(w)
    x = torch.full((8, 4096), 127, dtype=torch.int8, device=device)
    dense = s.to_dense().cpu().long()
    got = torch.mm(x, s.t())
    assert got.dtype == torch.int32
    assert torch.equal(got.cpu().long(), x.cpu().long() @ dense.t()), "sums beyond 2**24, which fp32 would round"
    bias = torch.ones(16, device=device)
    assert torch.equal(F.linear(x, s, bias), (got + 1).float()), "with a float bias the result is fp32"


def test_differentiate_in_the_dense_operands(device):
    w, d = make(device=device)
    s = to_sparse_semi_structured(w)
    x, bias = torch.randn(3, 5, 128, device=device), torch.randn(64, device=device)
    for run in (
        lambda x, b, weight: F.linear(x, weight, b),
        lambda x, b, weight: torch.addmm(b, x[0], weight.t()),
        lambda x, b, weight: (weight @ x[1].t()).t() * b,
        lambda x, b, weight: x[0, :, :64] @ weight * b.sum(),
    ):
        found = torch.autograd.grad(run(x.requires_grad_(), bias.requires_grad_(), s).square().sum(), (x, bias))
        expected = torch.autograd.grad(run(x, bias, d).square().sum(), (x, bias))
        twice = (x.detach().double().requires_grad_(), bias.detach().double().requires_grad_())
        precise = torch.autograd.grad(run(*twice, d.double()).square().sum(), twice)
        for got, torchs, true in zip(found, expected, precise, strict=True):
            assert_as_close_as_torch(got, torchs, true)


def test_refuse_in_sentences():
    w = torch.randn(16, 32)
    s = to_sparse_semi_structured(w)
    with pytest.raises(OptionError, match="not both"):
        to_sparse_semi_structured(w, mask=two_largest(w), mvue=True)
    with pytest.raises(ArgumentError, match="t is of type list"):
        to_sparse_semi_structured([[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(DtypeError, match="int32"):
        to_sparse_semi_structured(w.int())
    with pytest.raises(DtypeError, match="int64"):
        to_sparse_semi_structured(w, dtype=torch.int64)
    with pytest.raises(ShapeError, match="multiple of 4"):
        to_sparse_semi_structured(w[:, :30])
    with pytest.raises(ShapeError, match="two dims"):
        to_sparse_semi_structured(w[0])
    with pytest.raises(ShapeError, match="mask"):
        to_sparse_semi_structured(w, mask=torch.ones(4, 4))
    with pytest.raises(MaskError):
        to_sparse_semi_structured(w, mask=torch.ones_like(w))
    with pytest.raises(ShapeError, match=r"\[32, n\]"):
        s @ torch.randn(16, 3)
    with torch.inference_mode(), pytest.raises(ShapeError, match="x must be"):
        F.linear(torch.randn(2, 16), s)
    with pytest.raises(DtypeError, match=r"call \.to\(\)"):
        s @ torch.randn(32, 3).double()
    with pytest.raises(DtypeError, match=r"call \.to\(\)"):
        torch.randn(3, 16).double() @ s
    with pytest.raises(DtypeError):
        to_sparse_semi_structured(w, dtype=torch.int8) @ torch.randn(32, 3).to(torch.float8_e5m2)
    with pytest.raises(OperatorError, match="to_dense"):
        s + 1
    with pytest.raises(OperatorError, match="to_dense"):
        s @ s.t()
    with pytest.raises(ShapeError, match="keeps its shape"):
        s.view(32, 16)
