"""Direct ops: the same schema, fake kernel and result as the op they stand for, on the named provider."""

import pytest
import torch

from s24compile.errors import TargetError
from s24compile.kernels import ops as raw
from s24compile.kernels import providers
from s24compile.kernels.ops.direct import DIRECT, _kernel, direct
from s24compile.kernels.samples import samples

CASES = [(provider, op) for provider, ops in DIRECT.items() for op in ops]


@pytest.mark.parametrize(("provider", "op"), CASES)
def test_have_the_schema_and_fake_kernel_of_their_contract(provider, op):
    contract, made = getattr(torch.ops.s24, op).default, direct(provider, op)
    assert str(made._schema).partition("(")[2] == str(contract._schema).partition("(")[2]
    sample = samples(op, "cpu", torch.bfloat16)[0]
    with torch._subclasses.FakeTensorMode() as mode:
        args = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, sample.args)
        expected, found = contract(*args), made(*args)
    for a, b in zip(torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(found), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_look_their_kernel_up_once_and_pass_arguments_on(monkeypatch):
    asked = []

    def look_up(op, provider):
        asked.append((op, provider))
        return lambda *args: args

    monkeypatch.setattr(providers, "kernel", look_up)
    kernel = _kernel("cutlass", "mm")
    assert kernel(1, 2) == (1, 2)
    assert kernel(3) == (3,)
    assert asked == [("mm", "cutlass")]


def test_group_the_arguments_of_a_kernel():
    values, metadata = raw.pack(torch.eye(16), None, torch.float32, "sm90")
    assert torch.equal(providers.kernel("unpack", "reference")(values, metadata, 16, 16, "sm90"), torch.eye(16))
    a, b = torch.eye(16), torch.randn(16, 4)
    product = providers.kernel("mm", "reference")(values, metadata, 16, 16, "sm90", b, None, "row", torch.float32)
    assert torch.equal(product, a @ b)
    with pytest.raises(TargetError, match="the torch kernel of s24::glu"):
        providers.kernel("glu", "torch")


def test_leave_the_reference_its_name():
    assert direct("reference", "mm") is None
    assert direct("cutlass", "mvue_pack") is None


@pytest.mark.gpu
@pytest.mark.parametrize(("provider", "op"), CASES)
def test_agree_with_the_op_they_stand_for_on_a_gpu(provider, op):
    for sample in samples(op, "cuda", torch.bfloat16):
        args = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach(), sample.args)
        choice = providers.choose(op, *args)
        if choice.provider.name != provider:
            continue
        expected, found = getattr(torch.ops.s24, op).default(*args), direct(provider, op)(*args)
        leaves = torch.utils._pytree.tree_leaves
        for a, b in zip(leaves(expected), leaves(found), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
