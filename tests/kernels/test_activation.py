"""2:4 hidden states of ReLU and squared-ReLU layers: what is kept, what the backward makes of it, and its errors."""

import pytest
import torch

from s24compile import ops
from s24compile.errors import LoweringError, OptionError, ShapeError
from s24compile.kernels import ops as registered
from s24compile.kernels.format import FORMATS
from tests.closeness import assert_as_close_as_torch

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
ACTS = {"relu2": lambda z: torch.relu(z).square(), "relu": torch.relu}
LEGAL = {4, 8, 9, 12, 13, 14}


def hidden(*shape, device, dtype=FP32, scale=1.0, seed=0):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FP64)
    return (scale * drawn).to(device, dtype)


def codes_of(p):
    return FORMATS[p.format].decode(p.metadata, p.shape[0], p.shape[1], p.dtype)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("tokens", [0, 1, 7, 64, 154])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16], ids=str)
def test_keep_the_two_largest_of_four(act, tokens, dtype, device):
    z = hidden(tokens, 48, device=device, dtype=dtype)
    p = ops.activation_pack(z, act=act)
    h = ACTS[act](z.float()).to(dtype)
    assert torch.equal(ops.unpack(p), h * ops.magnitude_mask(h))
    assert (p.shape, p.dtype) == ((tokens, 48), dtype)


@pytest.mark.parametrize("view", ["column-major", "offset", "expanded", "every other"])
def test_read_any_strides(view, device):
    z = hidden(80, 80, device=device)
    views = {
        "column-major": z.t(), "offset": z[3:40, 5:53], "expanded": z[:1].expand(9, 80), "every other": z[::2, :64:2],
    }  # fmt: skip
    p, q = (ops.activation_pack(x) for x in (views[view], views[view].contiguous()))
    assert torch.equal(p.values, q.values)
    assert torch.equal(p.metadata, q.metadata)
    found = ops.activation_backward_pack(views[view], p, act="relu2", seed=1)
    expected = ops.activation_backward_pack(views[view].contiguous(), p, act="relu2", seed=1)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.values, theirs.values)
        assert torch.equal(ours.metadata, theirs.metadata)


@pytest.mark.parametrize("act", ACTS)
def test_keep_legal_places_of_zeros_nan_and_inf(act, device):
    z = -hidden(66, 64, device=device).abs()
    assert torch.count_nonzero(ops.unpack(ops.activation_pack(z, act=act))) == 0
    z[1, 0], z[2, 5], z[3, 8:12] = torch.nan, torch.inf, torch.nan
    z[4, 12:16] = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan])
    z[5, 16:20] = -0.0
    p = ops.activation_pack(z, act=act)
    assert set(codes_of(p).unique().tolist()) <= LEGAL
    dense = ops.unpack(p)
    assert dense[1, 0].isnan()
    assert dense[2, 5] == torch.inf
    assert dense[3, 8:12].isnan().tolist() == [True, True, False, False], "ties keep the lower index"
    assert dense[4, 13] == torch.inf
    assert dense[4, 15].isnan()
    assert not torch.signbit(dense[5, 16:20]).any()
    w = hidden(3, 64, device=device, seed=1)
    assert torch.equal(
        ops.activation_linear(p, w).isfinite().all(1).nonzero().flatten().cpu()[:3], torch.tensor([0, 5, 6])
    )


def test_overflow_in_fp16_as_the_dense_layer_does(device):
    z = torch.tensor([[300.0, 1.0, 0.0, 2.0] * 4], device=device, dtype=FP16)
    p = ops.activation_pack(z)
    assert torch.equal(ops.unpack(p), ops.unpack(p).where(z < 200, torch.inf))
    dz, _, _ = ops.activation_backward_pack(torch.ones_like(z), p, act="relu2", seed=0)
    assert ops.unpack(dz)[0, 0] == torch.inf, "a scaler must see it"


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("spread", [1.0, 2**-4])
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_take_the_slope_from_the_kept_square(act, spread, dtype, device):
    """2 sqrt(p) instead of 2 r is within twice the dense layer's own rounding, where squares are subnormal too."""
    z, dp = (hidden(64, 256, device=device, dtype=dtype, scale=s, seed=n) for n, s in enumerate((spread, 1.0)))
    p = ops.activation_pack(z, act=act)
    dz = ops.unpack(ops.activation_backward_pack(dp, p, act=act, seed=0)[0])
    kept = ops.unpack(p) > 0

    def gradient(wide):
        leaf = z.to(wide).requires_grad_()
        (found,) = torch.autograd.grad(ACTS[act](leaf), leaf, dp.to(wide))
        return found * kept

    assert_as_close_as_torch(dz, gradient(dtype), gradient(FP64), "dz")


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("tokens", [0, 1, 7, 154])
def test_pack_both_estimates_at_one_seed(act, tokens, device):
    z, dp = hidden(tokens, 80, device=device), hidden(tokens, 80, device=device, seed=1)
    p = ops.activation_pack(z, act=act)
    dz, dzt, pt = ops.activation_backward_pack(dp, p, act=act, seed=11)
    for estimate, dense in ((dzt, ops.unpack(dz)), (pt, ops.unpack(p))):
        expected = ops.mvue_pack(dense, seed=11)
        assert torch.equal(estimate.values, expected.values)
        assert torch.equal(estimate.metadata, expected.metadata)
        assert estimate.shape == (80, tokens)
    assert torch.equal(dz.metadata, p.metadata)
    assert torch.count_nonzero(ops.unpack(dz)[ops.unpack(p) == 0]) == 0


def test_give_nothing_to_what_relu_stopped_whatever_arrives(device):
    z = torch.tensor([[-1.0, 2.0, -1.0, torch.nan] * 4], device=device)
    dp = torch.tensor([[torch.nan, 1.0, torch.inf, 1.0] * 4], device=device)
    for act, slope in (("relu2", 4.0), ("relu", 1.0)):
        dz, *_ = ops.activation_backward_pack(dp, ops.activation_pack(z, act=act), act=act, seed=0)
        expected = [0.0, slope, 0.0, torch.nan if act == "relu2" else 1.0] * 4
        torch.testing.assert_close(ops.unpack(dz)[0].tolist(), expected, equal_nan=True)


def test_count_what_is_over_and_what_is_dropped(device):
    h = torch.zeros(70, 80, device=device)
    h[0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0], device=device)
    h[65, 76:79] = torch.tensor([5.0, 5.0, 5.0], device=device)
    h[3, 9] = 7.0
    _, _, counts = registered.activation_pack(h, None, "relu", 1.0, "sm90")
    assert counts.shape == (2, 2, 5)
    assert counts[0, 0].tolist() == [4096.0, 5.0, 1.0, 3.0, 17.0]
    assert counts[1, 1].tolist() == [6 * 16, 3.0, 1.0, 5.0, 15.0]
    assert counts[0, 1].tolist() == [64 * 16, 0.0, 0.0, 0.0, 0.0]


def layer(x, up, up_bias, down, down_bias, keep=None, act="relu2", scale=1.0, dw="dense"):
    arguments = up, None if up is None else up.detach(), up_bias, keep, down, down.detach(), down_bias
    return registered.activation_layer(x, *arguments, act, scale, "sm90", "out_in", "out_in", dw, dw)[0]


def leaves(device, dtype, tokens=6, width=8, hidden_width=32):
    shapes = (tokens, width), (hidden_width, width), (hidden_width,), (width, hidden_width), (width,)
    return [hidden(*shape, device=device, dtype=dtype, seed=n).requires_grad_() for n, shape in enumerate(shapes)]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dropout", [False, True])
def test_differentiate_the_layer_exactly(act, dropout, device):
    x, up, up_bias, down, down_bias = leaves(device, FP64)
    keep = torch.rand(6, 32, device=device) < 0.8 if dropout else None
    scale = 1.25 if dropout else 1.0
    assert torch.autograd.gradcheck(
        lambda *args: layer(*args, keep=keep, act=act, scale=scale), (x, up, up_bias, down, down_bias), fast_mode=True
    )
    z = x @ up.t() + up_bias
    h = ACTS[act](z) * scale * (1.0 if keep is None else keep)
    expected = (h * ops.magnitude_mask(h)) @ down.t() + down_bias
    torch.testing.assert_close(layer(x, up, up_bias, down, down_bias, keep, act, scale), expected)


@pytest.mark.parametrize("act", ACTS)
def test_differentiate_a_layer_whose_up_projection_is_elsewhere(act, device):
    x, _, _, down, down_bias = leaves(device, FP64, width=32)
    assert torch.autograd.gradcheck(
        lambda *a: layer(a[0], None, None, *a[1:], act=act), (x, down, down_bias), fast_mode=True
    )


def test_estimate_weight_gradients_without_bias(device):
    torch.manual_seed(0)
    inputs = leaves(device, FP32, tokens=16)

    def gradients(dw):
        return torch.autograd.grad(layer(*inputs, dw=dw).square().sum(), inputs)

    exact = gradients("dense")
    draws = [gradients("mvue") for _ in range(100)]
    for place, name in enumerate(("x", "up", "up_bias", "down", "down_bias")):
        found = torch.stack([draw[place] for draw in draws])
        if name in ("up", "down"):
            # Five standard errors of the mean of 100 draws, summed over the elements.
            error = (found.mean(0) - exact[place]).norm()
            assert error < 5 * (found.var(0).sum() / len(draws)).sqrt()
            assert found.var(0).sum() > 0
        else:
            torch.testing.assert_close(found[0], exact[place], msg=f"{name} is exact")


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (3,), (0, 1, 2), (0, 1, 2, 3), (3, 4)], ids=str)
def test_leave_out_what_nobody_asks_for(frozen, device):
    inputs = leaves(device, FP32)
    everything = torch.autograd.grad(layer(*inputs).sum(), inputs)
    for place in frozen:
        inputs[place].requires_grad_(False)
    wanted = [t for t in inputs if t.requires_grad]
    found = torch.autograd.grad(layer(*inputs).sum(), wanted)
    for ours, theirs in zip(found, [g for n, g in enumerate(everything) if n not in frozen], strict=True):
        torch.testing.assert_close(ours, theirs)
    if wanted and 3 not in frozen:
        torch.autograd.grad(layer(*inputs, dw="mvue").sum(), wanted)


def test_keep_only_the_input_and_the_packed_state_for_the_backward(device):
    inputs = leaves(device, BF16, tokens=64, width=16, hidden_width=64)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(*inputs)
    parameters = {t.data_ptr() for t in inputs}
    state = sum(t.numel() * t.element_size() for t in kept if t.data_ptr() not in parameters)
    assert state == 64 * 64 * 1.125, "two bytes for each kept element, half a bit more for its place"


def test_refuse_a_second_derivative_in_words(device):
    x, *weights = leaves(device, FP32)
    (grad,) = torch.autograd.grad(layer(x, *weights).sum(), x, create_graph=False)
    assert grad is not None
    with pytest.raises(LoweringError, match="second derivative"):
        torch.autograd.grad(layer(x, *weights).sum(), x, create_graph=True)


REFUSED = {
    "hidden width": (ShapeError, lambda z, p: ops.activation_pack(z[:, :24])),
    "batch": (ShapeError, lambda z, p: ops.activation_pack(z[None])),
    "activation": (OptionError, lambda z, p: ops.activation_pack(z, act="gelu")),
    "gradient of another shape": (ShapeError, lambda z, p: ops.activation_backward_pack(z[:2], p, act="relu", seed=0)),
    "activation of a gradient": (OptionError, lambda z, p: ops.activation_backward_pack(z, p, act="silu", seed=0)),
    "seed": (OptionError, lambda z, p: ops.activation_backward_pack(z, p, act="relu", seed=0.5)),
    "weight": (ShapeError, lambda z, p: ops.activation_linear(p, z[:, :16])),
    "bias": (ShapeError, lambda z, p: ops.activation_linear(p, z, z[0])),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuse_mistakes_in_words(case, device):
    error, call = REFUSED[case]
    z = hidden(4, 32, device=device)
    with pytest.raises(error) as caught:
        call(z, ops.activation_pack(z))
    assert len(str(caught.value)) > 30
