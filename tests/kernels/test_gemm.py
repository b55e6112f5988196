"""The 2:4 GEMM and the linear built on it: values, layouts, and gradients against masked dense ones."""

import pytest
import torch
import torch.utils.checkpoint
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from s24compile import ops
from s24compile.errors import LoweringError
from s24compile.kernels import ops as raw
from s24compile.kernels.ops import gemm
from tests.closeness import assert_as_close_as_torch
from tests.kernels.oracles import ANY_ROWS

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def sparse(m, k, dtype, device, format="sm90"):
    """A random 2:4 matrix, dense and packed."""
    w = torch.randn(m, k).to(device, dtype)
    mask = ops.magnitude_mask(w)
    return torch.where(mask, w, 0.0), raw.pack(w, mask, dtype, format)


@pytest.mark.parametrize("format", ANY_ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("out_layout", ["row", "col"])
@pytest.mark.parametrize("shape", [(72, 136, 24), (4, 4, 1), (64, 128, 0), (0, 8, 3), (8, 0, 3)], ids=str)
def test_mm_is_the_dense_product(format, dtype, out_layout, shape, device):
    m, k, n = shape
    a, packed = sparse(m, k, dtype, device, format)
    b, bias = torch.randn(n, k).to(device, dtype).t(), torch.randn(m).to(device, dtype)
    for with_bias in (None, bias):
        found = raw.mm(*packed, m, k, format, b, with_bias, out_layout, dtype)
        exact = a.double() @ b.double() + (0 if with_bias is None else with_bias.double()[:, None])
        dense = a @ b + (0 if with_bias is None else with_bias[:, None])
        assert_as_close_as_torch(found, dense, exact)
        assert found.stride() == ((n, 1) if out_layout == "row" else (1, m)) or found.numel() == 0


@pytest.mark.parametrize(
    "make", [lambda b: b[:, :64].t(), lambda b: b[2:66, 4:20], lambda b: b[:64, :1].expand(64, 16)], ids="tse"
)
def test_mm_takes_any_strides(make, device):
    _, packed = sparse(68, 64, torch.float32, device)
    b = make(torch.randn(80, 80, device=device))
    one, other = (raw.mm(*packed, 68, 64, "sm90", x, None, "row", torch.float32) for x in (b, b.contiguous()))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fp32_out_is_not_rounded_to_sixteen_bits_on_the_way(dtype, device):
    a, packed = sparse(64, 256, dtype, device)
    b = torch.randn(256, 32).to(device, dtype)
    found = raw.mm(*packed, 64, 256, "sm90", b, None, "row", torch.float32)
    assert_as_close_as_torch(found, a.float() @ b.float(), a.double() @ b.double())


def test_eight_bit_products_are_exact_in_the_accumulator(device):
    w = torch.randint(-8, 9, (64, 128)).float().to(device)
    mask = ops.magnitude_mask(w)
    p = ops.pack(w, mask, dtype=torch.float8_e4m3fn)
    b = torch.randint(-8, 9, (128, 16)).float().to(device)
    found = ops.mm(p, b.to(torch.float8_e5m2).to(torch.float8_e4m3fn))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.where(mask, w, 0.0) @ b.to(torch.float8_e5m2).float())


def test_an_odd_contraction_length_works(device):
    g, x = torch.randn(37, 20, device=device), torch.randn(37, 12, device=device)
    packed = ops.mvue_pack(g, seed=1)
    torch.testing.assert_close(ops.mm(packed, x), ops.unpack(packed) @ x)


@pytest.mark.parametrize("out_layout", ["row", "col"])
def test_mm_passes_gradcheck(out_layout, device):
    _, packed = sparse(8, 12, torch.float64, device)
    b = torch.randn(12, 5, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, device=device, requires_grad=True)
    run = lambda b, bias: raw.mm(*packed, 8, 12, "sm90", b, bias, out_layout, torch.float64)  # noqa: E731
    assert torch.autograd.gradcheck(run, (b, bias))


def test_functional_linear_passes_gradcheck_and_keeps_leading_dims(device):
    w = torch.randn(8, 12, dtype=torch.float64, device=device)
    p = ops.pack(w, ops.magnitude_mask(w))
    x = torch.randn(2, 3, 12, dtype=torch.float64, device=device, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, bias: ops.linear(x, p, bias), (x, bias))
    expected = torch.nn.functional.linear(x, ops.unpack(p), bias)
    torch.testing.assert_close(ops.linear(x, p, bias), expected)
    assert ops.linear(x, p).is_contiguous()


# s24::linear


class Case:
    """A linear of two stacked fp64 weights with its packed operand."""

    def __init__(self, device, *, dtype=torch.float64, master=None, layout="out_in", tokens=(3, 5)):
        master = master or dtype
        whole = torch.randn(80, 72).to(device, master)
        self.mask = ops.transposable_mask(whole)
        self.packed = raw.pack_both(whole, self.mask, dtype, "sm90")
        self.dense = torch.where(self.mask, whole, 0.0).to(dtype)
        parts = [whole[:68], whole[68:]] if layout == "out_in" else [whole[:68].t(), whole[68:].t()]
        self.weights = [part.contiguous().requires_grad_() for part in parts]
        self.layout = layout
        self.x = torch.randn(*tokens, 72).to(device, dtype).requires_grad_()
        self.bias = torch.randn(80).to(device, master).requires_grad_()
        self.dy = torch.randn(*tokens, 80).to(device, dtype)

    def __call__(self, dx="sparse", dw="dense"):
        return raw.linear(self.x, self.weights, *self.packed, self.bias, "sm90", self.layout, dx, dw)

    def logical(self, grads):
        return torch.cat([g if self.layout == "out_in" else g.t() for g in grads])


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("dx", ["sparse", "dense"])
def test_linear_has_the_gradients_of_the_masked_dense_one(layout, dx, device):
    case = Case(device, layout=layout)
    grads = torch.autograd.grad(case(dx), (case.x, case.bias, *case.weights), case.dy)
    x, dense = case.x.detach().requires_grad_(), case.dense.clone().requires_grad_()
    bias = case.bias.detach().requires_grad_()
    expected = torch.autograd.grad(torch.nn.functional.linear(x, dense, bias), (x, bias, dense), case.dy)
    torch.testing.assert_close(grads[0], expected[0])
    torch.testing.assert_close(grads[1], expected[1])
    torch.testing.assert_close(case.logical(grads[2:]), expected[2], msg="straight-through: unmasked")
    for grad, weight in zip(grads[2:], case.weights, strict=True):
        assert grad.shape == weight.shape
        assert grad.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dw", ["mvue", "dense"])
def test_low_precision_is_as_close_as_torchs_dense_path(dtype, dw, device, monkeypatch):
    monkeypatch.setattr(gemm, "_seed", lambda like: torch.full((1,), 5, dtype=torch.int64, device=like.device))
    case = Case(device, dtype=dtype, master=torch.float32, tokens=(64,))
    y = case(dw=dw)
    grads = torch.autograd.grad(y, (case.x, case.bias, *case.weights), case.dy)
    assert [g.dtype for g in (y, *grads)] == [dtype, dtype, torch.float32, torch.float32, torch.float32]
    x, w, dy = case.x.detach(), case.dense, case.dy
    dz = dy if dw == "dense" else ops.mvue(dy, dim=0, seed=5)
    bias = case.bias.detach()
    dense_y = torch.nn.functional.linear(x, w, bias.to(dtype))
    assert_as_close_as_torch(y, dense_y, x.double() @ w.double().t() + bias.double(), "y")
    assert_as_close_as_torch(grads[0], dy @ w, dy.double() @ w.double(), "dx")
    assert_as_close_as_torch(grads[1], dy.sum(0).float(), dy.double().sum(0), "db")
    assert_as_close_as_torch(case.logical(grads[2:]), (dz.t() @ x).float(), dz.double().t() @ x.double(), "dw")


@pytest.mark.parametrize("dx", ["sparse", "dense"])
def test_a_wider_input_is_cast_and_gets_a_gradient_of_its_own_dtype(dx, device):
    case = Case(device, dtype=torch.bfloat16, master=torch.float32, tokens=(16,))
    x = case.x.detach().float().requires_grad_()
    y = raw.linear(x, case.weights, *case.packed, case.bias, "sm90", "out_in", dx, "dense")
    assert torch.equal(y, case(dx))
    wide, narrow = torch.autograd.grad(y, x, case.dy)[0], torch.autograd.grad(case(dx), case.x, case.dy)[0]
    assert wide.dtype == torch.float32
    torch.testing.assert_close(wide.bfloat16(), narrow)


def test_it_runs_under_checkpointing_with_the_same_result(device):
    case = Case(device)
    plain = torch.autograd.grad(case().square().sum(), case.weights)
    y = torch.utils.checkpoint.checkpoint(lambda: case(), use_reentrant=False)
    for found, expected in zip(torch.autograd.grad(y.square().sum(), case.weights), plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_second_derivative_is_refused(device):
    case = Case(device)
    with pytest.raises(LoweringError, match="second derivative"):
        torch.autograd.grad(case().square().sum(), case.x, create_graph=True)


@pytest.mark.parametrize("dx", ["sparse", "mvue"])
def test_mvue_gradients_are_the_dense_ones_in_expectation(dx, device):
    case, count = Case(device, tokens=(16,)), 400
    draws = [torch.autograd.grad(case(dx, "mvue"), (case.x, *case.weights), case.dy) for _ in range(count)]
    exact = (case.dy @ case.dense, case.dy.t() @ case.x.detach())
    for found, expected in zip(([d[0] for d in draws], [case.logical(d[1:]) for d in draws]), exact, strict=True):
        stack = torch.stack(found)
        deviation = stack.std(0) / count**0.5
        # 6.2 deviations of a mean: a chance of 1e-9 each; a little for the deviation itself being an estimate.
        assert ((stack.mean(0) - expected).abs() <= 7 * deviation + 1e-12).all()


def test_unneeded_gradients_are_not_computed(device, monkeypatch):
    calls = []
    mm, mvue_pack = gemm.mm, gemm.mvue_pack
    monkeypatch.setattr(gemm, "mm", lambda *args: calls.append("mm") or mm(*args))
    monkeypatch.setattr(gemm, "mvue_pack", lambda *args: calls.append("mvue_pack") or mvue_pack(*args))
    case = Case(device)
    case.x.requires_grad_(False)
    case(dw="mvue").backward(case.dy)
    assert calls == ["mvue_pack", "mm"], "no dX for an input without gradient"
    calls.clear()
    frozen = Case(device)
    for weight in frozen.weights:
        weight.requires_grad_(False)
    frozen(dw="mvue").backward(frozen.dy)
    assert calls == ["mm"], "no dW for frozen weights"
    half = Case(device)
    half.weights[1].requires_grad_(False)
    half().backward(half.dy)
    assert half.weights[0].grad is not None
    assert half.weights[1].grad is None


@pytest.mark.parametrize("tokens", [(0,), (2, 0), (1,), (7,)], ids=str)
@pytest.mark.parametrize("dx", ["sparse", "mvue"])
def test_any_number_of_tokens_works(tokens, dx, device):
    case = Case(device, tokens=tokens)
    y = case(dx, "mvue")
    assert y.shape == (*tokens, 80)
    y.backward(case.dy)
    assert case.x.grad.shape == case.x.shape
    assert all(weight.grad.isfinite().all() for weight in case.weights)


@pytest.mark.parametrize("dw", ["mvue", "dense"])
def test_expanded_gradients_and_strided_inputs_work(dw, device, monkeypatch):
    monkeypatch.setattr(gemm, "_seed", lambda like: torch.full((1,), 5, dtype=torch.int64, device=like.device))
    case = Case(device, tokens=(8, 4))
    grads = torch.autograd.grad(case(dw=dw).mean(), (case.x, *case.weights))  # .mean() sends a stride-0 gradient
    dy = torch.full_like(case.dy, 1 / case.dy.numel())
    for found, expected in zip(grads, torch.autograd.grad(case(dw=dw), (case.x, *case.weights), dy), strict=True):
        torch.testing.assert_close(found, expected)
    strided = case.x.detach().transpose(0, 1)
    one, other = (
        raw.linear(x, [], *case.packed, None, "sm90", "out_in", "sparse", dw) for x in (strided, strided.contiguous())
    )
    torch.testing.assert_close(one, other)


def test_a_backward_through_repacked_buffers_raises(device):
    case = Case(device)
    y = case()
    raw.pack_weight_(
        [case.dense],
        [raw.transposable_patterns(case.dense)],
        *case.packed,
        None,
        "transposable",
        True,
        "sm90",
        "out_in",
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(case.dy)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_compiled_gradients_equal_eager_ones(backend, layout, device):
    case = Case(device, layout=layout, dtype=torch.float32)
    eager = torch.autograd.grad(case(), (case.x, case.bias, *case.weights), case.dy)

    def run(x, weights, bias):
        return raw.linear(x, weights, *case.packed, bias, "sm90", layout, "sparse", "dense")

    y = torch.compile(run, backend=backend, fullgraph=True)(case.x, case.weights, case.bias)
    compiled = torch.autograd.grad(y, (case.x, case.bias, *case.weights), case.dy)
    for found, expected in zip(compiled, eager, strict=True):
        torch.testing.assert_close(found, expected)


def test_compiled_mvue_draws_anew_each_backward_and_obeys_manual_seed(device):
    case = Case(device, dtype=torch.float32)
    run = torch.compile(lambda: case(dw="mvue"), backend="inductor", fullgraph=True)
    torch.manual_seed(1)
    first, second = (torch.autograd.grad(run(), case.weights, case.dy)[0] for _ in range(2))
    torch.manual_seed(1)
    again = torch.autograd.grad(run(), case.weights, case.dy)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [("none", ["mvue_pack", "mm", "mm"]), ("weights", ["mm"]), ("input", ["mvue_pack", "mm"]), ("one weight", None)],
)
def test_the_traced_backward_holds_what_is_needed_and_no_more(frozen, expected, device):
    case, graphs = Case(device, dtype=torch.float32), []
    for weight in case.weights if frozen == "weights" else case.weights[1:] if frozen == "one weight" else []:
        weight.requires_grad_(False)
    if frozen == "input":
        case.x.requires_grad_(False)

    def keep(gm, inputs):
        graphs.append([n.target._opname for n in gm.graph.nodes if getattr(n.target, "namespace", "") == "s24"])
        return make_boxed_func(gm.forward)

    backend = aot_autograd(fw_compiler=lambda gm, inputs: make_boxed_func(gm.forward), bw_compiler=keep)
    torch.compile(lambda: case(dw="mvue"), backend=backend, fullgraph=True)().backward(case.dy)
    assert graphs == [expected or ["mvue_pack", "mm", "mm"]]
    assert [weight.grad is not None for weight in case.weights] == [weight.requires_grad for weight in case.weights]
    assert (case.x.grad is not None) == case.x.requires_grad
