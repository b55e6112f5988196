"""Gated linear units: values and gradients as close as torch's own, for both gates."""

import pytest
import torch

from s24compile import ops
from s24compile.kernels import ops as raw
from s24compile.kernels.activations import ACTIVATIONS, DENSE
from tests.closeness import assert_as_close_as_torch

ACTS = {name: ACTIVATIONS[name].value for name in DENSE}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def dense_glu(z, act, gate):
    first, second = z.chunk(2, dim=-1)
    return ACTS[act](first) * second if gate == "first" else first * ACTS[act](second)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("gate", ["first", "second"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_are_as_close_as_torchs(act, gate, dtype, device):
    z = (torch.randn(33, 48) * 3).to(device, dtype)
    dh = torch.randn(33, 24).to(device, dtype)
    results = []
    for run, x in (
        (lambda z: ops.glu(z, act=act, gate=gate), z.clone()),
        (lambda z: dense_glu(z, act, gate), z.clone()),
        (lambda z: dense_glu(z, act, gate), z.double()),
    ):
        h = run(x.requires_grad_())
        results.append((h, *torch.autograd.grad(h, x, dh.to(h.dtype))))
    ours, torchs, exact = results
    for what, a, b, c in zip(("h", "dz"), ours, torchs, exact, strict=True):
        assert_as_close_as_torch(a, b, c, what)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("gate", ["first", "second"])
def test_gradcheck_passes(act, gate, device):
    z = torch.randn(3, 2, 8, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ops.glu(z, act=act, gate=gate), (z,))


def test_the_gate_half_is_the_one_activated(device):
    z = torch.tensor([[-1.0, 2.0, 10.0, 20.0]], device=device)
    assert ops.glu(z, act="relu", gate="first").tolist() == [[0.0, 40.0]]
    assert ops.glu(z, act="relu", gate="second").tolist() == [[-10.0, 40.0]]


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (8,), (2, 3, 4, 6)], ids=str)
def test_any_leading_dims_and_empty_inputs_work(shape, device):
    z = torch.randn(shape, device=device, requires_grad=True)
    h = ops.glu(z)
    assert h.shape == (*shape[:-1], shape[-1] // 2)
    h.sum().backward()
    assert z.grad.shape == z.shape


def test_strides_do_not_matter(device):
    z = torch.randn(40, 33, device=device)
    dh = torch.randn(16, 33, device=device)[:, :20]
    for x in (z.t()[:20, 8:], z[:20, :1].expand(20, 32), z[1:21, 1:33]):
        assert torch.equal(ops.glu(x), ops.glu(x.contiguous()))
        one = raw.glu_backward(dh.t(), x, "silu", "first")
        torch.testing.assert_close(one, raw.glu_backward(dh.t().contiguous(), x.contiguous(), "silu", "first"))
        assert one.is_contiguous()


@pytest.mark.parametrize("act", ACTS)
def test_large_inputs_stay_finite(act, device):
    z = torch.tensor([[60.0, -60.0, 1.0, 1.0], [3e4, -3e4, 1.0, 1.0]], device=device, requires_grad=True)
    h = ops.glu(z, act=act)
    torch.testing.assert_close(h, torch.tensor([[60.0, 0.0], [3e4, 0.0]], device=device))
    h.sum().backward()
    assert z.grad.isfinite().all()
