"""How far a product of eight-bit floats on a kernel may be from fp64's, and its epilogue's results with it."""

import torch

from s24compile.kernels import providers
from tests.closeness import assert_as_close_as_torch

KEPT = 2.0**-12
"""Tensor cores align the terms of a sum to its largest and keep 13 bits; half of that for each of two halves of it."""
FITTED = 2e-4
"""Of an epilogue's act and act': what test_activation_fits.py holds activations.cuh to, and a little."""
STEEPEST = 1.2
"""No activation here has a slope beyond."""


def sums(args):
    """(exact A B times both descales, how far a kernel's may be from it), fp64 [rows, n]."""
    values, metadata, rows, cols, format, descale_a, b, descale_b, *_ = args
    unpack = providers.kernel("unpack", "reference")
    a, descale = unpack(values, metadata, rows, cols, format).double(), descale_a.double() * descale_b.double()
    return a @ b.double() * descale, KEPT * (a.abs() @ b.double().abs()) * descale


def assert_close(what, found, exact, allowed):
    """Within `allowed`, and a rounding of the result's dtype."""
    assert found.dtype in (torch.bfloat16, torch.float16, torch.float32)
    # A bound above zero where both are zero.
    limit = allowed + torch.finfo(found.dtype).eps * exact.abs() + 1e-6
    excess = ((found.double() - exact).abs() - limit).max() if exact.numel() else torch.zeros(())
    assert excess <= 0, f"{what} is beyond what its sums may be off by, by {excess:.3e}"


def assert_product(what, found, a, b, shift=0.0):
    """A B + shift, of fp32 operands that hold eight-bit floats times a scale.

    On a CPU the reference sums in fp32, and has to be as close as torch's own product is; on a GPU tensor cores do.
    """
    exact = a.double() @ b.double() + shift
    if found.is_cuda:
        assert_close(what, found, exact, KEPT * (a.double().abs() @ b.double().abs()))
    else:
        assert_as_close_as_torch(found, (a @ b + shift).to(found.dtype), exact, what)


def check_amax(found, exact, allowed):
    """That of a result before it is rounded."""
    assert (found.shape, found.dtype) == ((1,), torch.float32)
    if exact.numel():
        near = (exact.abs().max() - found.double()).abs()
        assert near <= allowed.max() + 1e-6 * exact.abs().max() + 1e-6


def check(op, found, args):
    """Everything that the op returned, from its arguments."""
    reference = {name: providers.kernel(name, "reference") for name in ("act", "act_backward", "glu", "glu_backward")}
    product, error = sums(args)
    if op == "scaled_mm":
        bias = args[8]
        assert_close("D", found[0], product if bias is None else product + bias.double()[:, None], error)
    elif op == "scaled_mm_add":
        assert_close("D", found[0], product + args[8].double(), error)
    elif op == "scaled_mm_act":
        bias, act = args[8:10]
        z = product if bias is None else product + bias.double()[:, None]
        h = reference["act"](z, act)
        allowed = STEEPEST * error + FITTED * (1 + h.abs())
        assert_close("Z", found[0], z, error)
        assert_close("H", found[1], h, allowed)
        check_amax(found[2], h, allowed)
    elif op == "scaled_mm_dact":
        z, act, _, wanted = args[8:12]
        dz = reference["act_backward"](product, z.double(), act)
        allowed = STEEPEST * error + FITTED * product.abs()
        assert_close("dZ", found[0], dz, allowed)
        assert_close("sums", found[1], dz.sum(1) if wanted else dz[:0, 0], allowed.sum(1) if wanted else allowed[:0, 0])
        check_amax(found[2], dz, allowed)
    elif op == "scaled_mm_glu":
        act, gate = args[8:10]
        h = reference["glu"](product.t(), act, gate).t()
        halves, errors = product.chunk(2), error.chunk(2)
        gated, other = halves if gate == "first" else halves[::-1]
        d_gated, d_other = errors if gate == "first" else errors[::-1]
        allowed = (STEEPEST * d_gated + FITTED * (1 + gated.abs())) * (other.abs() + d_other)
        allowed += (gated.abs() + d_gated) * d_other
        assert_close("Z", found[0], product, error)
        assert_close("H", found[1], h, allowed)
        check_amax(found[2], h, allowed)
    else:
        assert op == "scaled_mm_dglu"
        z, act, gate = args[8:11]
        dz = reference["glu_backward"](product.t(), z.t().double(), act, gate).t()
        largest = z.double().abs().chunk(2)
        size = torch.maximum(*largest) + 1
        allowed = torch.cat([(STEEPEST * error + FITTED * product.abs()) * size] * 2)
        assert_close("dZ", found[0], dz, allowed)
        check_amax(found[1], dz, allowed)
