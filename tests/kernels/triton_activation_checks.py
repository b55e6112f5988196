"""The passes over hidden states against their references, on a GPU or in the interpreter (test_triton.py starts this).

Places, metadata and kept values must agree to the bit; counts and column sums are sums in another order. The
interpreter takes about a second for each tile of the backward, so there most cases are one tile; test_providers.py runs
the samples.
"""

import pytest
import torch

from s24compile.errors import TargetError
from s24compile.kernels import ops, providers
from tests.kernels.triton_comparison import agree, both

BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = [(70, 48, "sm90"), (7, 16, "sm80"), (0, 32, "sm90")]
if torch.cuda.is_available():
    SHAPES += [(128, 128, "sm80"), (70, 208, "sm80"), (1, 64, "sm90"), (154, 64, "sm90"), (1000, 3072, "sm90")]


def compare(op, make):
    """All results to the bit but the last, which is made of sums."""
    found, expected = both(op, make)
    agree(found[:-1], expected[:-1], exact=True)
    torch.testing.assert_close(found[-1], expected[-1], rtol=1e-5, atol=1e-4, equal_nan=True)
    return expected


def states(tokens, hidden, dtype, device, seed=0):
    torch.manual_seed(seed)
    return (torch.randn(tokens, hidden, device=device) - 0.7).to(dtype)


def operand(z, act="relu2", format="sm90"):
    with providers.only("reference"):
        values, metadata, _ = ops.activation_pack(z, None, act, 1.0, format)
    return values, metadata, *z.shape, format


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_passes_take_any_layout_and_token_count(shape, column_major, device):
    def laid(x):
        return x.t().contiguous().t() if column_major else x

    tokens, hidden, format = shape
    z = laid(states(tokens, hidden, FP16, device))
    compare("activation_pack", lambda: (z, None, "relu2", 1.0, format))
    seed, dp = torch.tensor([2**40 + 17], device=device), laid(states(tokens, hidden, FP16, device, seed=1))
    p = operand(z, format=format)
    compare("activation_backward_pack", lambda: (dp, *p, "relu2", 1.0, seed, True, True, True))


@pytest.mark.parametrize("view", ["expanded row", "expanded column", "odd offset", "odd pitch", "every other"])
def test_passes_take_odd_strides(view, device):
    z = states(96, 161, BF16, device)
    views = {
        "expanded row": z[:1, :64].expand(40, 64),
        "expanded column": z[:40, :1].expand(40, 64),
        "odd offset": z[1:41, 3:67],
        "odd pitch": z[:40, :64],
        "every other": z[:, :128][:80:2, ::2],
    }
    z = views[view]
    assert z.shape == (40, 64)
    compare("activation_pack", lambda: (z, None, "relu", 1.0, "sm90"))
    p, seed = operand(states(40, 64, BF16, device, seed=2)), torch.tensor([3], device=device)
    compare("activation_backward_pack", lambda: (z, *p, "relu2", 1.0, seed, False, False, False))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, BF16) for kind in ("zeros", "inf and nan", "subnormal", "huge", "ties")]
    + [(kind, FP16) for kind in ("negative", "subnormal", "huge")],
)
def test_passes_follow_the_reference_through_special_values(kind, dtype, device):
    z, dp = states(48, 64, torch.float32, device), states(48, 64, torch.float32, device, seed=1)
    if kind == "zeros":
        z, dp = z * (torch.rand_like(z) < 0.3), dp * (torch.rand_like(z) < 0.5)
    elif kind == "negative":
        z = -z.abs()
    elif kind == "inf and nan":
        z[::7, ::5], z[::11, ::3], z[::13, ::2] = torch.inf, torch.nan, -torch.inf
        dp[::5, ::7], dp[::3, ::11] = torch.inf, torch.nan
    elif kind == "subnormal":
        z, dp = z * (1e-20 if dtype == BF16 else 1e-3), dp * (1e-39 if dtype == BF16 else 1e-6)
    elif kind == "huge":
        z, dp = z * (1e19 if dtype == BF16 else 200), dp * (1e18 if dtype == BF16 else 1e4)
    else:
        z = z.sign()
    z, dp, seed = z.to(dtype), dp.to(dtype), torch.tensor([11], device=device)
    for act in ("relu2", "relu"):
        compare("activation_pack", lambda act=act: (z, None, act, 1.0, "sm90"))
    p = operand(z)
    compare("activation_backward_pack", lambda: (dp, *p, "relu2", 1.0, seed, dtype == BF16, dtype == BF16, False))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_slopes_are_correctly_rounded_roots_of_every_number(dtype, device):
    last = 0x7F80 if dtype == BF16 else 0x7C00
    every = torch.arange(0, last + 64, dtype=torch.int16, device=device).view(dtype)
    z = torch.zeros(every.numel(), 16, dtype=dtype, device=device)
    z[:, 0] = every
    p, seed, dp = operand(z, "relu"), torch.tensor([0], device=device), torch.ones_like(z)
    compare("activation_backward_pack", lambda: (dp, *p, "relu2", 1.0, seed, False, False, False))


@pytest.mark.parametrize("kept", ["rows", "columns", "odd"])
def test_dropout_masks_take_any_layout(kept, device):
    z = states(70, 96, BF16, device)
    keep = torch.rand(70, 97, device=device) < 0.8
    keep = {"rows": keep[:, :96].contiguous(), "columns": keep.t().contiguous().t()[:, :96], "odd": keep[:, 1:]}[kept]
    compare("activation_pack", lambda: (z, keep, "relu2", 1.25, "sm90"))
    turned = z.t().contiguous().t()
    compare("activation_pack", lambda: (turned, keep, "relu2", 1.25, "sm90"))


@pytest.mark.parametrize(("estimate_dz", "estimate_p"), [(True, False), (False, True), (False, False)])
def test_backward_writes_only_what_is_asked_for(estimate_dz, estimate_p, device):
    p, dp = operand(states(40, 48, BF16, device)), states(40, 48, BF16, device, seed=1)
    seed = torch.tensor([4], device=device)
    results = compare("activation_backward_pack", lambda: (dp, *p, "relu2", 1.0, seed, estimate_dz, estimate_p, True))
    assert [x.numel() > 0 for x in results] == [True, *[estimate_dz] * 2, *[estimate_p] * 2, True]


def test_kernels_refuse_what_they_do_not_take(device):
    p, seed = operand(states(16, 32, BF16, device)), torch.tensor([4], device=device)
    dp = torch.randn(16, 32, device=device)
    with providers.only("triton"), pytest.raises(TargetError, match="gradients of the dtype of p only"):
        ops.activation_backward_pack(dp, *p, "relu2", 1.0, seed, True, True, False)
    with providers.only("triton"), pytest.raises(TargetError, match="only"):
        ops.activation_pack(torch.randn(16, 32, device=device), None, "relu2", 1.0, "sm90")
