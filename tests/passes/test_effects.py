"""Writes and changes of mode between the nodes that a rule puts one node for: nothing may move across them."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

from s24compile.passes.effects import in_one_mode, undisturbed, written_by
from tests import ffn_spellings, ffns
from tests.masked import masked_call
from tests.passes.harness import Capture, check_masked, input_of


def _item(x):
    x[..., :16] = 0


def _through_a_view(x):
    x[..., :16].zero_()


def _through_an_earlier_view(x):
    x.view(-1).mul_(0.5)


def _out(x):
    torch.mul(x, 0.5, out=x)


WRITES = {
    "method": lambda x: x.add_(1.0),
    "item": _item,
    "view": _through_a_view,
    "flat_view": _through_an_earlier_view,
    "flag": lambda x: F.leaky_relu(x, inplace=True),
    "positional_flag": lambda x: F.leaky_relu(x, 0.5, True),
    "function": lambda x: torch.relu_(x),
    "out": _out,
    "copy": lambda x: x.copy_(torch.ones_like(x)),
    "foreach": lambda x: torch._foreach_mul_([x], 2.0),
    "aten": lambda x: torch.ops.aten.add_.Tensor(x, x),
}


class Layer(nn.Module):
    """`parts` makes the hidden activation, and calls `between` somewhere in the middle."""

    def __init__(self, parts, between) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32))
        self.parts, self.between = parts, between

    def forward(self, x):
        x = x * 1.0
        return self.down(self.parts(self, x)) + x


def gated(m, x):
    g = F.silu(m.gate(x))
    m.between(x)
    return g * m.up(x)


def late_bias(m, x):
    y = F.linear(x, m.up.weight)
    m.between(x)
    return F.gelu(y + m.up.bias)


def flattened(m, x):
    y = m.up(x.view(-1, 32))
    m.between(x)
    return F.gelu(y.view(*x.shape[:-1], 64))


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("parts", [gated, late_bias, flattened])
def test_read_an_input_before_it_is_written(parts, write):
    torch.manual_seed(0)
    model, capture = Layer(parts, WRITES[write]), Capture()
    torch._dynamo.reset()
    with torch.no_grad():  # a backward would need the x of before
        y = torch.compile(model, backend=capture)(input_of())
        torch.testing.assert_close(y, masked_call(model, capture.masks, input_of()))
    assert capture.linears == (3 if parts is gated else 2)


def test_read_a_rounded_input_before_it_is_written():
    def parts(m, x):
        hidden = F.gelu(m.up(x))
        wide = hidden.float()
        hidden.copy_(torch.ones_like(hidden))
        return wide

    torch.manual_seed(0)
    model, capture = Layer(parts, None), Capture()
    torch._dynamo.reset()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.compile(model, backend=capture)(input_of())
        torch.testing.assert_close(y, masked_call(model, capture.masks, input_of()))


@pytest.mark.parametrize("parts", [gated, late_bias, flattened])
def test_move_reads_across_writes_to_other_memory(parts):
    torch.manual_seed(0)
    model, capture = Layer(parts, lambda x: torch.zeros_like(x).add_(1.0)), Capture()
    check_masked(model, capture, input_of())
    names = [str(node.target) for node in capture.nodes]
    assert names.count("s24.linear.default") == 2
    assert "view" not in names
    assert not any(node.name.startswith("add_tensor") for node in capture.nodes)


def no_grad_gate(m, x):
    with torch.no_grad():
        g = F.silu(m.gate(x))
    return g * m.up(x)


def no_grad_up(m, x):
    g = F.silu(m.gate(x))
    with torch.no_grad():
        u = m.up(x)
    return g * u


def no_grad_activation(m, x):
    g, u = m.gate(x), m.up(x)
    with torch.no_grad():
        a = F.silu(g)
    return a * u


def no_grad_product(m, x):
    with torch.no_grad():
        y = F.linear(x, m.up.weight)
    return F.gelu(y + m.up.bias)


def no_grad_bias(m, x):
    y = F.linear(x, m.up.weight)
    with torch.no_grad():
        y = y + m.up.bias
    return F.gelu(y)


def no_grad_flat(m, x):
    with torch.no_grad():
        y = m.up(x.view(-1, 32))
    return F.gelu(y.view(*x.shape[:-1], 64))


def no_grad_reshape(m, x):
    y = m.up(x.view(-1, 32))
    with torch.no_grad():
        y = y.view(*x.shape[:-1], 64)
    return F.gelu(y)


NO_GRAD = [
    no_grad_gate, no_grad_up, no_grad_activation, no_grad_product, no_grad_bias, no_grad_flat, no_grad_reshape,
]  # fmt: skip


@pytest.mark.parametrize("parts", NO_GRAD)
def test_give_gradients_to_those_that_eager_gives_some(parts):
    torch.manual_seed(0)
    model, capture = Layer(parts, None), Capture()
    check_masked(model, capture, input_of())
    assert capture.linears == (3 if "gate" in parts.__code__.co_names else 2)


class Fused(nn.Module):
    """Both halves of one projection, cut twice: once with a gradient and once without."""

    def __init__(self, first) -> None:
        super().__init__()
        self.both, self.down, self.first = nn.Linear(32, 128), nn.Linear(64, 32), first

    def forward(self, x):
        z = self.both(x)
        with torch.no_grad() if self.first else contextlib.nullcontext():
            a = z.chunk(2, -1)[0]
        with contextlib.nullcontext() if self.first else torch.no_grad():
            b = z[..., 64:]
        return self.down(F.silu(a) * b)


@pytest.mark.parametrize("first", [True, False])
def test_cut_halves_under_the_grad_mode_of_each(first):
    torch.manual_seed(0)
    model, capture = Fused(first), Capture()
    check_masked(model, capture, input_of())
    assert capture.linears == 2


@pytest.mark.parametrize(
    ("call", "writes"),
    [
        (lambda x, y: x + y, 0),
        (lambda x, y: x.__and__(y), 0),
        (lambda x, y: x.__iadd__(y), 1),
        (lambda x, y: F.relu(x, inplace=False), 0),
        (lambda x, y: F.elu(x, 1.0, False), 0),
        (lambda x, y: F.elu(x, 1.0, True), 1),
        (lambda x, y: torch.ops.aten.copy_(x, y), 2),
        (lambda x, y: torch.ops.aten.mul(x, y), 0),
        (lambda x, y: torch.add(x, y, out=y), 1),
    ],
)
def test_tell_what_a_node_writes_to(call, writes):
    graph = fx.symbolic_trace(call).graph
    node = [n for n in graph.nodes if n.op.startswith("call")][-1]
    found = written_by(node)
    assert (None if found is None else len(found)) == writes


def unknown(x):
    return x


fx.wrap("unknown")


def test_trust_no_function_of_others():
    graph = fx.symbolic_trace(lambda x: unknown(x)).graph
    first, call, last = graph.nodes
    assert written_by(call) is None
    assert not undisturbed((first, last))
    assert not in_one_mode((first, last))
    assert undisturbed((first, call, last))


class Cut(nn.Module):
    """`parts(m, x)` of a fused projection, a plain layer beside it."""

    def __init__(self, parts) -> None:
        super().__init__()
        self.fused, self.down, self.side, self.parts = nn.Linear(32, 128), nn.Linear(64, 32), ffns.Plain(F.gelu), parts

    def forward(self, x):
        return self.parts(self, x) + self.side(x)


def woven(m, x):
    z = m.fused(x).view(*x.shape[:-1], 64, 2).transpose(-1, -2).reshape(*x.shape[:-1], 128)  # a copy, columns permuted
    g, u = z.split(64, -1)
    return m.down(F.silu(g) * u)


def half_twice(m, x):
    z = m.fused(x)
    a, b, u = z[..., :64], z[..., :64], z[..., 64:]
    a.relu_()
    return m.down(a * u) + b.sum(-1, keepdim=True)


def half_written(m, x):
    z = m.fused(x)
    z[..., :64].sub_(1.0)
    return m.down(z[..., :64] * z[..., 64:])


def element_written(m, x):
    z = m.fused(x)
    g = z[..., :64]
    g[..., 0] = 0
    return m.down(F.silu(g) * z[..., 64:])


def product_in_place(m, x):
    z = m.fused(x)
    return m.down(z[..., 64:].mul_(torch.relu(z[..., :64])))


@pytest.mark.parametrize("parts", [woven, half_twice, half_written, element_written, product_in_place])
def test_cut_halves_as_they_lie_and_are_written(parts):
    torch.manual_seed(0)
    check_masked(Cut(parts), Capture(), input_of())


def clamped_under_no_grad(m, x):
    y = m.side(x)
    with torch.no_grad():
        y.clamp_(-1, 1)
    return y


def scaled_under_no_grad(m, x):
    h = m.side.fc1(x)
    with torch.no_grad():
        h.mul_(0.5)
    return m.side.fc2(F.gelu(h))


def turned_under_no_grad(m, x):
    with torch.no_grad():
        turned = m.side.fc1.weight.t()
    return m.side.fc2(F.gelu(x @ turned))


def rounded_under_no_grad(m, x):
    with torch.no_grad():
        rounded = m.side.fc1.weight.to(torch.float64).to(torch.float32)
    return m.side.fc2(F.gelu(F.linear(x, rounded)))


def fake_quantised(m, x):
    return m.side.fc2(F.gelu(F.linear(x, m.side.fc1.weight.to(torch.bfloat16).to(x.dtype))))


def clamped_and_written(m, x):
    a = m.side.fc1(x).clamp(min=0)
    a.sub_(0.1)
    return m.side.fc2(a)


def seen_with_another_shape(m, x):
    y = m.side(x)
    y.unsqueeze_(0)
    return y.squeeze(0)


def detached_later(m, x):
    x = x * 1
    y = m.side(x)
    x.detach_()
    return y


@pytest.mark.parametrize(
    "parts",
    [
        clamped_under_no_grad, scaled_under_no_grad, turned_under_no_grad, rounded_under_no_grad, fake_quantised,
        clamped_and_written, seen_with_another_shape,
    ],
)  # fmt: skip
def test_leave_gradients_and_rounding_as_eager_has_them(parts):
    torch.manual_seed(0)
    check_masked(Cut(parts), Capture(), input_of())


def test_find_the_input_gradient_where_the_input_was_detached_later():
    torch.manual_seed(0)
    model, x = Cut(detached_later), input_of()
    options = {"inner": "aot_eager", "min_speedup": 0, "gradient": "dense"}
    torch.compile(model, backend="s24", options=options)(x).sum().backward()
    assert x.grad is not None


def test_take_a_frozen_layer_that_something_trainable_is_added_to():
    def parts(m, x):
        y = m.side(x)
        y += F.linear(x, m.down.weight[:, :32])
        return y

    model, capture = Cut(parts), Capture()
    model.side.requires_grad_(False)
    torch._dynamo.reset()
    y = torch.compile(model, backend=capture)(input_of().detach())
    torch.testing.assert_close(y, masked_call(model, capture.masks, input_of().detach()))
    assert y.requires_grad


def test_round_what_is_added_in_place_to_what_is_there():
    def parts(m, x):
        y = m.side(x)
        y += x
        return y

    model, capture = Cut(parts), Capture()
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.compile(model, backend=capture)(input_of())
        assert y.dtype == masked_call(model, capture.masks, input_of()).dtype == torch.bfloat16


def test_write_a_bias_that_is_the_target_of_a_sum():
    def parts(m, x):
        with torch.no_grad():
            m.down.bias.add_(F.linear(x[0, 0, :32], m.down.weight[:, :32]))
        return m.side(x)

    torch.manual_seed(0)
    model, capture, x = Cut(parts), Capture(), input_of()
    expected = model.down.bias.detach() + F.linear(x[0, 0], model.down.weight[:, :32]).detach()
    torch._dynamo.reset()
    torch.compile(model, backend=capture)(x)
    torch.testing.assert_close(model.down.bias, expected)


def by_two_operands(m, x, turned):
    return m.side.fc2(F.gelu(x @ turned)) + m.side.fc2(F.gelu(m.side.fc1(x)))


def checkpointed(m, x):
    body = functools.partial(by_two_operands, m)
    return checkpoint(body, x, m.side.fc1.weight.T, use_reentrant=False)


def test_hand_one_weight_down_by_two_operands():
    torch.manual_seed(0)
    model, plain = Cut(checkpointed), Cut(lambda m, x: by_two_operands(m, x, m.side.fc1.weight.T))
    plain._modules = model._modules
    check_masked(model, Capture(), input_of(), reference=plain)


@pytest.fixture
def pow_in_fp32():
    """As autocast on a GPU computes `pow`, on a CPU."""

    def wide(x, exponent):
        with torch.autocast("cpu", enabled=False):
            return torch.ops.aten.pow.Tensor_Scalar(x.float() if x.dtype == torch.bfloat16 else x, exponent)

    library = torch.library.Library("aten", "IMPL")
    library.impl("pow.Tensor_Scalar", wide, "AutocastCPU")
    yield
    library._destroy()


ACTS = {"gelu_new": ffn_spellings.gelu_new, "relu2": lambda x: torch.pow(F.relu(x), 2)}


@pytest.mark.parametrize("act", ACTS)
def test_take_activations_that_autocast_widens(act, pow_in_fp32):
    torch.manual_seed(0)
    model, capture = ffns.Plain(ACTS[act]), Capture()
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.compile(model, backend=capture)(input_of())
        expected = masked_call(model, capture.masks, input_of())
    assert capture.linears == 2
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-6 * expected.abs().max().item())


@pytest.mark.gpu
@pytest.mark.parametrize("act", ACTS)
def test_take_activations_that_autocast_widens_on_a_gpu(act):
    model, capture, x = ffns.Plain(ACTS[act]).cuda(), Capture(), input_of().detach().cuda()
    torch._dynamo.reset()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = torch.compile(model, backend=capture)(x)
        expected = masked_call(model, capture.masks, x)
    assert capture.linears == 2
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-6 * expected.abs().max().item())
