"""Masked decay touches pruned places only, in place, with one rounding."""

import pytest
import torch

from s24compile import ops
from s24compile.errors import ShapeError
from s24compile.kernels import ops as raw


@pytest.mark.parametrize("grad_dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pruned_places_move_by_alpha_w_and_kept_ones_do_not(grad_dtype, w_dtype, device):
    grad, w = torch.randn(24, 40).to(device, grad_dtype), torch.randn(24, 40).to(device, w_dtype)
    mask, before = ops.transposable_mask(w), grad.clone()
    version = grad._version
    assert ops.masked_decay_(grad, w, mask, 0.25) is None
    assert torch.equal(grad[mask], before[mask])
    exact = before.double() + 0.25 * w.double()
    assert ((grad.double() - exact).abs()[~mask] <= torch.finfo(grad_dtype).eps * exact.abs()[~mask] + 1e-7).all()
    assert grad._version > version


@pytest.mark.parametrize("kind", ["transposable", "rows"])
def test_patterns_and_a_tensor_alpha_do_the_same(kind, device):
    w, grad = torch.randn(24, 40, device=device), torch.randn(24, 40, device=device)
    find = raw.transposable_patterns if kind == "transposable" else raw.magnitude_patterns
    patterns = find(w)
    expected = grad.clone()
    ops.masked_decay_(expected, w, raw.expand_patterns(patterns, kind), 0.25)
    for alpha in (torch.tensor(0.25), torch.tensor(0.25, device=device)):
        found = grad.clone()
        raw.masked_decay_patterns_(found, w, patterns, kind, alpha)
        torch.testing.assert_close(found, expected)
    transposed = grad.t().contiguous()
    raw.masked_decay_patterns_(transposed.t(), w, patterns, kind, torch.tensor(0.25))
    torch.testing.assert_close(transposed.t(), expected)


def test_parameters_work_and_nan_at_kept_places_stays_there(device):
    w = torch.nn.Parameter(torch.randn(8, 8, device=device))
    w.grad = torch.zeros_like(w)
    mask = ops.transposable_mask(w)
    with torch.no_grad():
        w[mask] = float("nan")
    ops.masked_decay_(w.grad, w, mask, 1.0)
    assert (w.grad[mask] == 0).all()
    assert torch.equal(w.grad[~mask], w.detach()[~mask])


def test_other_shapes_are_refused(device):
    w = torch.randn(8, 8, device=device)
    with pytest.raises(ShapeError, match="mask has shape"):
        ops.masked_decay_(w.clone(), w, torch.ones(8, 4, dtype=torch.bool, device=device), 0.1)
