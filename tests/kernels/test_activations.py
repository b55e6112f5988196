"""The table of activations: what it says is so, and a name that it has not is an error wherever it is given."""

import pytest
import torch
from torch import nn

from s24compile import ops as functional
from s24compile.errors import OptionError
from s24compile.kernels import ops
from s24compile.kernels.activations import ACTIVATIONS, DENSE, SPARSE
from s24compile.kernels.gemm.cutlass import objects
from s24compile.kernels.glu import reference
from s24compile.kernels.samples import samples

TORCH = {
    "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "silu": nn.SiLU(), "relu": nn.ReLU(),
    "relu2": lambda x: torch.relu(x).square(), "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}  # fmt: skip
"""What people write."""


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_compute_what_the_name_says(name):
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64).requires_grad_()
    row, y = ACTIVATIONS[name], TORCH[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(row.value(x), y)
    torch.testing.assert_close(row.slope(x.detach()), slope)


def test_say_who_takes_which():
    assert DENSE == ("gelu", "gelu_tanh", "silu", "relu")
    assert SPARSE == ("relu", "relu2")
    assert all(name in (functional.glu.__doc__ or "") for name in DENSE)
    template = (objects.HERE / "activations.cuh").read_text()
    for row in ACTIVATIONS.values():
        for made in (f"using {row.name} = Forward<{row.cuda}, T>", f"using d{row.name} = Backward<{row.cuda}, T>"):
            assert not row.cuda or made in template
        assert row.dense or not (row.triton or row.cuda or row.prebuilt), "a kernel of no op"


def calls():
    """One call of each op that takes an activation, with the place of its name."""
    for op in ops.NAMES:
        arguments = [a.name for a in getattr(torch.ops.s24, op).default._schema.arguments]
        if "act" in arguments:
            yield pytest.param(op, arguments.index("act"), id=op)


@pytest.mark.parametrize("name", ["sine", "relu2", "RELU", ""])
@pytest.mark.parametrize(("op", "place"), list(calls()))
def test_refuse_a_name_that_an_op_does_not_take(op, place, name):
    args = list(samples(op, "cpu", torch.float32)[0].args)
    args[place] = name
    call = getattr(torch.ops.s24, op)
    with pytest.raises(OptionError, match=f"act='{name}' is not accepted: it must be one of 'gelu'"):
        call(*args)
    with torch._subclasses.FakeTensorMode() as mode, pytest.raises(OptionError, match="is not accepted"):
        call(*torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, args))


def test_refuse_it_in_the_functions_below_too():
    z = torch.ones(2, 4)
    for run in (lambda: reference.act(z, "sine"), lambda: reference.glu_backward(z[:, :2], z, "sine", "first")):
        with pytest.raises(OptionError, match="'quick_gelu'"):
            run()
    with pytest.raises(OptionError, match="act="):
        functional.glu(z, act="relu2")
