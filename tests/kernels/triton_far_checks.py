"""Tensors whose elements lie more than 2^31 elements apart: offsets are 64 bits wide in every Triton kernel.

Run by test_triton.py. On a CPU the gaps are pages that nobody touches; on a GPU they take their 4 GB.
"""

import pytest
import torch

from s24compile.kernels import providers
from s24compile.kernels.samples import samples

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPS = (
    "pack", "unpack", "pack_both", "pack_weight_", "pack_weights_", "mvue_pack", "mvue_pack_sum", "glu", "glu_backward",
    "transposable_patterns", "soft_threshold_scale",
    "masked_decay_patterns_", "masked_decay_many_",
)  # fmt: skip
SAMPLES = 2
"""Of each op: the interpreter is slow."""


def far(t, dim):
    """A copy of t whose last slice along `dim` begins 2^31 elements after the first."""
    apart = t.movedim(dim, 0)
    stride = -(-(2**31) // (len(apart) - 1) // 64) * 64
    inner = torch.empty(apart.shape[1:]).stride()
    room = torch.empty(stride * len(apart), dtype=t.dtype, device=t.device)
    return room.as_strided(apart.shape, (stride, *inner)).copy_(apart).movedim(0, dim)


def moved_apart(args, dim):
    """The arguments with the first matrix among them (in a list of weights: the first of those) moved; None: none."""
    for i, arg in enumerate(args):
        tensor = arg[0] if isinstance(arg, list) and arg else arg
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and min((*tensor.shape, 2)[-3:]) > 1:
            other = far(tensor, dim)
            return (*args[:i], [other, *arg[1:]] if isinstance(arg, list) else other, *args[i + 1 :])
    return None


def results(run, args):
    """The tensors of the result, and of the arguments where the op writes into those."""
    outcome = run(*args)
    leaves = torch.utils._pytree.tree_leaves((outcome, args if outcome is None else ()))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def sum_tolerance(g):
    """Two orders of adding up T numbers differ by at most 2 (T - 1) roundings of their absolute sum."""
    return 2 * len(g) * torch.finfo(torch.float32).eps * float(g.float().abs().sum(0).max())


# Columns of packed values are never apart.
CASES = [(op, dim) for op in OPS for dim in (0, -1) if (op, dim) != ("unpack", -1)]


@pytest.mark.parametrize(
    ("op", "dim"), CASES, ids=[f"{op}-{'rows' if dim == 0 else 'columns'} apart" for op, dim in CASES]
)
def test_offsets_past_two_to_the_31_are_right(op, dim):
    run = providers.kernel(op, "triton")
    compared = 0
    for near, apart in zip(samples(op, DEVICE, torch.bfloat16), samples(op, DEVICE, torch.bfloat16), strict=True):
        args = moved_apart(apart.args, dim)
        if args is None or providers.refusal(op, "triton", *near.args) is not None:
            continue
        assert providers.refusal(op, "triton", *args) is None
        for a, b in zip(results(run, args), results(run, near.args), strict=True):
            # Column sums of dZ are added up in the order of its layout: as far apart as fp32 rounding takes them.
            summed = op == "mvue_pack_sum" and a.dtype == torch.float32 and a.dim() == 1
            torch.testing.assert_close(a, b, rtol=0, atol=sum_tolerance(near.args[0]) if summed else 0)
        compared += 1
        if compared == SAMPLES:
            return
    assert compared, "no sample of this op was moved apart"


def test_the_gap_is_as_wide_as_it_says():
    t = torch.randn(5, 8, device=DEVICE)
    apart = far(t, 0)
    assert torch.equal(apart, t)
    assert 4 * apart.stride(0) >= 2**31
