"""`Sparse24` keeps the habits of a tensor: views, copies, conversions, saving, modules, compiling, fakes."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

import s24compile
from s24compile import Sparse24, to_sparse_semi_structured
from s24compile.errors import DimensionError, OperatorError, ShapeError
from tests.kernels.oracles import two_largest

WIDE = [torch.float32, torch.bfloat16, torch.float16]
BYTES = [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]


def make(m=64, k=128, device="cpu"):
    """w and w pruned to its two largest of four."""
    w = torch.randn(m, k).to(device)
    return w, torch.where(two_largest(w), w, 0.0)


def test_transpose_without_a_copy(device):
    w, d = make(device=device)
    s = to_sparse_semi_structured(w)
    for view in (s.t(), s.T, s.mT, s.transpose(0, 1), s.permute(1, 0)):
        assert (view.shape, view.stride()) == ((128, 64), (1, 128))
        assert view.kept.data_ptr() == s.kept.data_ptr()
        assert torch.equal(view.to_dense(), d.t())
    assert torch.equal(s.t().t().to_dense(), d)
    assert torch.equal(s.transpose(0, 0).to_dense(), d)
    for wrong in (
        lambda: s.transpose(0, 3),
        lambda: s.transpose(-3, 0),
        lambda: s.permute(1, 2),
        lambda: s.permute(1, 1),
    ):
        with pytest.raises(DimensionError, match=r"does not take the dims \(-?\d, \d\)"):
            wrong()
    assert torch.equal(s.view(64, 128).to_dense(), d)


def test_detach_shares_and_clone_copies(device):
    w, _ = make(72, 100, device=device)
    s = to_sparse_semi_structured(w, dtype=torch.float8_e4m3fn)
    assert s.detach().kept.data_ptr() == s.kept.data_ptr()
    copied = s.clone()
    assert copied.kept.data_ptr() != s.kept.data_ptr()
    assert copied.kept.stride() == s.kept.stride(), "the row pitch that TMA needs survives"
    copied.scale.zero_()
    assert float(s.scale) > 0
    assert torch.equal(s.clone().to_dense(), s.to_dense())


@pytest.mark.parametrize("source", [*WIDE, *BYTES], ids=str)
@pytest.mark.parametrize("goal", [*WIDE, *BYTES], ids=str)
def test_convert_between_dtypes(source, goal, device):
    w, _ = make(72, 100, device=device)
    s = to_sparse_semi_structured(w, dtype=source)
    moved = s.to(goal)
    assert moved.dtype == goal
    assert (moved.scale is not None) == (goal.itemsize == 1)
    expected = to_sparse_semi_structured(s.to_dense(torch.float32), mask=s.to_dense(torch.float32) != 0, dtype=goal)
    assert torch.equal(moved.to_dense(torch.float32), expected.to_dense(torch.float32))


def test_take_the_values_of_another_in_place(device):
    w, d = make(device=device)
    s, other = to_sparse_semi_structured(torch.zeros_like(w)), to_sparse_semi_structured(w)
    pointer = s.kept.data_ptr()
    s.copy_(other)
    assert torch.equal(s.to_dense(), d)
    assert s.kept.data_ptr() == pointer
    for wrong in (w, other.t(), to_sparse_semi_structured(w[:32])):
        with pytest.raises(ShapeError):
            s.copy_(wrong)


def test_save_and_load_with_weights_only():
    w, d = make(72, 100)
    tensors = {"plain": to_sparse_semi_structured(w), "narrow": to_sparse_semi_structured(w, dtype=torch.int8).t()}
    file = io.BytesIO()
    torch.save(tensors, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert torch.equal(loaded["plain"].to_dense(), d)
    assert torch.equal(loaded["narrow"].to_dense(), tensors["narrow"].to_dense())
    assert loaded["narrow"].transposed
    assert loaded["narrow"].to_dense().dtype == torch.float32


def test_live_in_a_module(device):
    net = nn.Sequential(nn.Linear(128, 64), nn.GELU()).to(device)
    net[0].weight = nn.Parameter(to_sparse_semi_structured(net[0].weight), requires_grad=False)
    x = torch.randn(5, 128, device=device)
    expected = net(x)
    assert isinstance(net[0].weight, nn.Parameter)
    twin = copy.deepcopy(net)
    assert twin[0].weight.kept.data_ptr() != net[0].weight.kept.data_ptr()
    twin[0].weight.data.kept.zero_()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), expected)
    half = copy.deepcopy(net).to(torch.bfloat16)
    assert half[0].weight.dtype == torch.bfloat16
    assert half(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast(device, dtype=torch.bfloat16):
        assert net(x).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_whatever_eager_runs(backend, device):
    w, _ = make(device=device)
    s = to_sparse_semi_structured(w)
    b, x = torch.randn(128, 5, device=device), torch.randn(2, 3, 128, device=device).transpose(0, 1)

    def use(s, b, x):
        bias = torch.ones(64, device=s.device)
        dense = s @ b, torch.addmm(bias, b.t(), s.t()), F.linear(x, s, bias), s.to_dense(), b.t()[:, :64] @ s
        return dense, (s.t(), s.clone(), s.to(torch.bfloat16), s.detach())

    compiled = torch.compile(use, backend=backend, fullgraph=True)
    for got, expected in zip(compiled(s, b, x)[0], use(s, b, x)[0], strict=True):
        torch.testing.assert_close(got, expected)
    for got, expected in zip(compiled(s, b, x)[1], use(s, b, x)[1], strict=True):
        assert isinstance(got, Sparse24)
        assert (got.shape, got.dtype, got.kept.stride()) == (expected.shape, expected.dtype, expected.kept.stride())
        assert torch.equal(got.to_dense(), expected.to_dense())


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile_the_making_of_one(backend, device):
    w, _ = make(device=device)

    def pack(w):
        return to_sparse_semi_structured(w), to_sparse_semi_structured(w, dtype=torch.int8)

    for got, expected in zip(torch.compile(pack, backend=backend, fullgraph=True)(w), pack(w), strict=True):
        assert torch.equal(got.to_dense(), expected.to_dense())


def test_train_through_a_compiled_frozen_sparse_weight(device):
    net = nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 128)).to(device)
    net[0].weight = nn.Parameter(to_sparse_semi_structured(net[0].weight), requires_grad=False)
    x = torch.randn(5, 128, device=device)
    net(x).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    torch.compile(net, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    found = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(found) == len(expected) == 3
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_leave_a_sparse_weight_alone_in_the_s24_backend(device):
    net = nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 128)).to(device)
    net[0].weight = nn.Parameter(to_sparse_semi_structured(net[0].weight), requires_grad=False)
    x = torch.randn(5, 128, device=device)
    with torch.no_grad():
        got = torch.compile(net, backend="s24", options={"inner": "aot_eager", "exclude": ["2"]})(x)
        torch.testing.assert_close(got, net(x))
    fast = torch.compile(net, backend="s24", options={"min_speedup": 0.0})
    assert "its weight is a Sparse24" in str(s24compile.explain(fast, x))


def test_work_on_fake_tensors():
    real = to_sparse_semi_structured(torch.randn(72, 100), dtype=torch.float8_e5m2)
    with FakeTensorMode() as mode:
        made = to_sparse_semi_structured(torch.empty(72, 100), dtype=torch.float8_e5m2)
        for fake in (made, mode.from_tensor(real)):
            for field in ("kept", "metadata", "scale"):
                given, expected = getattr(fake, field), getattr(real, field)
                assert (given.shape, given.stride(), given.dtype) == (expected.shape, expected.stride(), expected.dtype)
            y = torch.empty(3, 100, dtype=torch.float8_e5m2) @ fake.t()
            assert (y.shape, y.dtype, y.stride()) == ((3, 72), torch.float32, (72, 1))
            assert fake.to(torch.bfloat16).dtype == torch.bfloat16


def test_serve_a_backward_though_made_in_inference_mode():
    with torch.inference_mode():
        s = to_sparse_semi_structured(torch.randn(16, 32))
    x = torch.randn(4, 32, requires_grad=True)
    (x @ s.t()).sum().backward()
    torch.testing.assert_close(x.grad, s.to_dense().sum(0).expand(4, 32))


def test_print_what_it_is():
    text = repr(to_sparse_semi_structured(torch.randn(16, 32), dtype=torch.int8).t())
    assert text == "Sparse24([32, 16], torch.int8, device='cpu', format='sm90', scaled, transposed)"


@pytest.mark.parametrize("inside", [False, True], ids=["made outside", "made inside"])
def test_multiply_and_turn_under_inference_mode(inside, device):
    with torch.inference_mode(inside):
        w, _ = make(device=device)
        s = to_sparse_semi_structured(w)
    x = torch.randn(3, 128, device=device)
    with torch.inference_mode():
        dense = s.to_dense()
        for got, expected in (
            (s @ x.t(), dense @ x.t()),
            (x @ s.T, x @ dense.T),
            (x[None] @ s.mT, x[None] @ dense.mT),
            (s @ x.t().expand(2, 128, 3), dense @ x.t().expand(2, 128, 3)),
            (s.t().t().to_dense(), dense),
        ):
            torch.testing.assert_close(got, expected)
        layer = nn.Linear(128, 64, bias=False, device=device)
        layer.weight = nn.Parameter(s, requires_grad=False)
        torch.testing.assert_close(layer(x), x @ dense.t())
        with pytest.raises(OperatorError, match=r"to_dense\(\)"):
            s.sin()
