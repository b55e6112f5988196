"""The linear whose three GEMMs multiply eight-bit floats: values, gradients, and what it keeps for its backward.

What its operands are rounded to is test_fp8.py's; here it must multiply exactly those.
"""

import pytest
import torch

from s24compile.errors import LoweringError
from s24compile.kernels import ops
from s24compile.kernels.ops import fp8_linear, gemm
from s24compile.kernels.scaling import descale_of, finite_amax, scale_of
from tests.closeness import assert_as_close_as_torch
from tests.kernels.scaled_closeness import assert_product

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BF16, FP32 = torch.bfloat16, torch.float32


def wide(x, dtype):
    """What x [T, F] becomes in eight bits, fp32."""
    q, _, descale = ops.quantise(x, ops.amax(x), dtype, "row")
    return q.float() * descale


class Case:
    """A linear of two stacked fp32 weights with its packed operand."""

    def __init__(self, device, *, dtype=BF16, layout="out_in", tokens=(4, 8)):
        whole = torch.randn(80, 96).to(device)
        mask, scale = ops.transposable_mask(whole), scale_of(finite_amax(whole), E4M3)
        packed = ops.pack_both(whole * scale, mask, E4M3, "sm90")
        self.packed = [*packed[:2], descale_of(scale), [], *packed[2:]]
        self.dense = ops.unpack(*packed[:2], 80, 96, "sm90").float() * self.packed[2]
        parts = [whole[:68], whole[68:]] if layout == "out_in" else [whole[:68].t(), whole[68:].t()]
        self.weights = [part.contiguous().requires_grad_() for part in parts]
        self.layout, self.dtype = layout, dtype
        self.x = torch.randn(*tokens, 96).to(device, dtype).requires_grad_()
        self.bias = torch.randn(80).to(device).requires_grad_()
        self.dy = torch.randn(*tokens, 80).to(device, dtype)
        self.flat, self.dz = self.x.detach().reshape(-1, 96), self.dy.reshape(-1, 80)

    def __call__(self, dx="sparse", dw="dense"):
        last = self.dtype, "sm90", self.layout, dx, dw
        return ops.scaled_linear(self.x, self.weights, *self.packed, self.bias, *last)

    def gradients(self, dx="sparse", dw="dense"):
        dx, db, *dw = torch.autograd.grad(self(dx, dw)[0], (self.x, self.bias, *self.weights), self.dy)
        return dx.reshape(-1, 96), db, torch.cat([g if self.layout == "out_in" else g.t() for g in dw])


@pytest.fixture
def one_seed(monkeypatch):
    """Every estimate is drawn from it."""
    monkeypatch.setattr(gemm, "_seed", lambda like: torch.full((1,), 5, dtype=torch.int64, device=like.device))


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("dx", ["sparse", "dense"])
def test_multiply_what_the_operands_are_rounded_to(dx, layout, dtype, device):
    case = Case(device, dtype=dtype, layout=layout)
    y, x_t, descale, amax = case(dx)
    torch.testing.assert_close(amax, finite_amax(case.flat), rtol=0, atol=0)
    x, dz, w = wide(case.flat, E4M3), wide(case.dz, E5M2), case.dense
    torch.testing.assert_close(x_t.float().t() * descale, x, rtol=0, atol=0)
    assert_product("y", y.reshape(-1, 80), x, w.t(), case.bias.detach())
    grad_x, grad_bias, grad_w = case.gradients(dx)
    assert [g.dtype for g in (y, grad_x, grad_bias, grad_w)] == [dtype, dtype, FP32, FP32]
    assert_product("dx", grad_x, dz, w)
    assert_product("dw", grad_w, dz.t(), x)
    assert_as_close_as_torch(grad_bias, case.dz.sum(0, dtype=FP32), case.dz.double().sum(0), "db")


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("dx", ["sparse", "dense", "mvue"])
def test_multiply_the_estimate_of_a_gradient(dx, layout, device, one_seed):
    case, seed = Case(device, layout=layout), torch.full((1,), 5, device=device)
    grad_x, grad_bias, grad_w = case.gradients(dx, "mvue")
    amax, x = ops.amax(case.dz), wide(case.flat, E4M3)

    def estimate(g):
        """MVUE(g^T) in eight bits, fp32."""
        _, values, metadata, _, descale, _ = ops.quantise_pack(g, amax, seed, E5M2, "sm90", False, False)
        return ops.unpack(values, metadata, g.shape[1], g.shape[0], "sm90").float() * descale

    pruned = estimate(case.dz)
    assert_product("dw", grad_w, pruned, x)
    assert_as_close_as_torch(grad_bias, case.dz.sum(0, dtype=FP32), case.dz.double().sum(0), "db")
    dz = estimate(case.dz.t()) if dx == "mvue" else wide(case.dz, E5M2)
    assert_product("dx", grad_x, dz, case.dense)


def test_stay_near_the_linear_that_it_stands_for(device):
    """Half a step of e4m3 is 2**-4 of a number, of e5m2 2**-3; errors of either sign do not add up."""
    case = Case(device, tokens=(256,))
    w = torch.where(case.dense != 0, torch.cat(list(case.weights)).detach(), 0.0).double()
    y, x, dz = case()[0].double(), case.flat.double(), case.dz.double()
    grad_x, _, grad_w = case.gradients()
    for found, exact, allowed in (
        (y, x @ w.t() + case.bias.double(), 2 * 2.0**-4),
        (grad_x.double(), dz @ w, 2.0**-4 + 2.0**-3),
        (grad_w.double(), dz.t() @ x, 2.0**-4 + 2.0**-3),
    ):
        assert (found - exact).norm() / exact.norm() < allowed


def test_keep_eight_bits_of_x_and_nothing_wider(device):
    case, kept = Case(device), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        case("sparse", "mvue")
    assert sorted(str(t.dtype) for t in kept if t.numel() > 1) == ["torch.float8_e4m3fn"] * 2 + ["torch.uint8"]
    assert {tuple(t.shape) for t in kept if t.numel() > 1 and t.dtype == E4M3} == {(96, 32), (96, 40)}


def test_compute_no_gradient_that_nobody_asks_for(device, monkeypatch):
    calls = []
    for name in ("scaled_mm", "scaled_dense", "quantise", "quantise_pack", "amax"):
        run = getattr(fp8_linear, name)
        monkeypatch.setattr(fp8_linear, name, lambda *a, run=run, name=name: calls.append(name) or run(*a))

    def backward(case, dw):
        y = case(dw=dw)[0]
        calls.clear()
        y.backward(case.dy)
        return list(calls)

    case = Case(device)
    case.x.requires_grad_(False)
    assert backward(case, "mvue") == ["amax", "quantise_pack", "scaled_mm"], "no dX for an input without gradient"
    frozen = Case(device)
    for weight in frozen.weights:
        weight.requires_grad_(False)
    assert backward(frozen, "mvue") == ["amax", "quantise", "scaled_mm"], "no dW for frozen weights"
    half = Case(device)
    half.weights[1].requires_grad_(False)
    backward(half, "dense")
    assert half.weights[0].grad is not None
    assert half.weights[1].grad is None
    alone = Case(device)
    for tensor in (alone.x, *alone.weights):
        tensor.requires_grad_(False)
    assert backward(alone, "dense") == []
    torch.testing.assert_close(alone.bias.grad, alone.dz.sum(0, dtype=FP32))


def test_refuse_a_second_derivative(device):
    case = Case(device)
    with pytest.raises(LoweringError, match="second derivative"):
        torch.autograd.grad(case()[0].square().sum(), case.x, create_graph=True)


@pytest.mark.parametrize("tokens", [(0,), (2, 0), (1,), (7,)], ids=str)
@pytest.mark.parametrize(("dx", "dw"), [("sparse", "mvue"), ("mvue", "mvue"), ("dense", "dense")])
def test_take_any_number_of_tokens(tokens, dx, dw, device):
    case = Case(device, tokens=tokens)
    y = case(dx, dw)[0]
    assert y.shape == (*tokens, 80)
    y.backward(case.dy)
    assert case.x.grad.shape == case.x.shape
    assert all(weight.grad.isfinite().all() for weight in case.weights)


def test_give_checkpointing_the_same_result(device):
    case = Case(device)
    plain = torch.autograd.grad(case()[0].square().sum(), case.weights)
    y = torch.utils.checkpoint.checkpoint(lambda: case()[0], use_reentrant=False)
    for found, expected in zip(torch.autograd.grad(y.square().sum(), case.weights), plain, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("backend", "dynamic"), [("aot_eager", False), ("aot_eager", True), ("inductor", True)])
def test_compile_to_what_runs_eagerly(backend, dynamic, device):
    case = Case(device)
    eager = torch.autograd.grad(case()[0], (case.x, case.bias, *case.weights), case.dy)

    def run(x, weights, bias):
        return ops.scaled_linear(x, weights, *case.packed, bias, BF16, "sm90", "out_in", "sparse", "dense")[0]

    y = torch.compile(run, backend=backend, fullgraph=True, dynamic=dynamic)(case.x, case.weights, case.bias)
    compiled = torch.autograd.grad(y, (case.x, case.bias, *case.weights), case.dy)
    for found, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
def test_multiply_dense_weights_by_what_they_are_rounded_to(dtype, layout, device):
    w = torch.randn(80, 96).to(device)
    weight = (w if layout == "out_in" else w.t().contiguous()).requires_grad_()
    x = torch.randn(4, 8, 96).to(device, dtype).requires_grad_()
    bias, dy = torch.randn(80).to(device).requires_grad_(), torch.randn(4, 8, 80).to(device, dtype)
    y, *kept = ops.scaled_dense_linear(x, weight, bias, dtype, layout)
    grad_x, grad_w, grad_bias = torch.autograd.grad(y, (x, weight, bias), dy)
    assert [g.dtype for g in (y, grad_x, grad_w, grad_bias)] == [dtype, dtype, FP32, FP32]
    assert [t.dtype for t in kept] == [E4M3, FP32, E4M3, FP32]
    flat, dz = x.detach().reshape(-1, 96), dy.reshape(-1, 80)
    x8, w8, dz8 = wide(flat, E4M3), wide(w, E4M3), wide(dz, E5M2)
    assert_product("y", y.detach().reshape(-1, 80), x8, w8.t(), bias.detach())
    assert_product("dx", grad_x.reshape(-1, 96), dz8, w8)
    grad_w = grad_w if layout == "out_in" else grad_w.t()
    assert_product("dw", grad_w, dz8.t(), x8)
    assert_as_close_as_torch(grad_bias, dz.sum(0, dtype=FP32), dz.double().sum(0), "db")


def test_refuse_a_second_derivative_of_a_dense_linear(device):
    x, w = torch.randn(8, 96, device=device).requires_grad_(), torch.randn(80, 96, device=device).requires_grad_()
    y = ops.scaled_dense_linear(x, w, None, FP32, "out_in")[0]
    with pytest.raises(LoweringError, match="second derivative"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("dw", ["dense", "mvue"])
def test_show_what_the_scales_are_made_from(dw, device):
    case = Case(device)
    probes = [torch.zeros(1, device=device, requires_grad=True) for _ in range(2)]
    case.packed[3] = probes
    seen = torch.autograd.grad(case(dw=dw)[0], probes, case.dy)
    for found, tensor in zip(seen, (case.flat, case.dz), strict=True):
        torch.testing.assert_close(found, finite_amax(tensor), rtol=0, atol=0)
