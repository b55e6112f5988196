"""Every Triton kernel against its reference, on a GPU or in Triton's interpreter (test_triton.py starts this).

Patterns, metadata and kept values must agree to the bit; activations, sums and decayed gradients within rounding.
"""

import pytest
import torch

from s24compile.errors import TargetError
from s24compile.kernels import ops, providers
from s24compile.kernels.activations import DENSE
from s24compile.kernels.glu.triton import glu_backward_into, glu_into
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.samples import samples
from tests.kernels.triton_comparison import agree, both, weight_arguments

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
EXACT = (
    "transposable_patterns",
    "transposable_mask",
    "mvue_pack",
    "pack_weight_",
    "pack_weights_",
    "pack",
    "pack_both",
    "unpack",
    "flip_rate",
    "copy_samples_",
    "compare_samples_",
)
CLOSE = (
    "soft_threshold_scale",
    "glu",
    "glu_backward",
    "masked_decay_patterns_",
    "masked_decay_many_",
    "mvue_pack_sum",
)


@pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)
@pytest.mark.parametrize("op", [*EXACT, *CLOSE])
def test_agrees_on_every_sample(op, dtype, device):
    taken, refusals = 0, []
    for index in range(len(samples(op, device, dtype))):
        try:
            found, expected = both(op, lambda index=index: samples(op, device, dtype)[index].args)
        except TargetError as refusal:
            refusals.append(str(refusal))
            continue
        agree(found, expected, op in EXACT)
        taken += 1
    assert all("only" in refusal for refusal in refusals), "a refusal says what is taken"
    packs = "pack" in op
    assert taken or (packs and dtype == FP32), "fp32 operands are the reference's alone"


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("shape", [(128, 128), (130, 72), (3, 5), (61, 200), (0, 8)], ids=str)
def test_mvue_pack_takes_any_layout_and_token_count(shape, column_major, dtype, device):
    def make():
        torch.manual_seed(1)
        g = torch.randn(shape, device=device).to(dtype)
        g = g.t().contiguous().t() if column_major else g
        return g, torch.tensor([2**40 + 17], device=device), dtype, "sm90"

    agree(*both("mvue_pack", make), exact=True)


@pytest.mark.parametrize("view", ["expanded row", "expanded column", "odd offset", "every other"])
def test_mvue_pack_takes_odd_strides(view, device):
    def make():
        torch.manual_seed(2)
        g = torch.randn(80, 141, device=device).to(BF16)
        views = {
            "expanded row": g[:1, :70].expand(80, 70),
            "expanded column": g[:, :1].expand(80, 70),
            "odd offset": g[1:, 3:74],
            "every other": g[::2, ::2],
        }
        return views[view], torch.tensor([5], device=device), BF16, "sm90"

    agree(*both("mvue_pack", make), exact=True)


@pytest.mark.parametrize("kind", ["zeros", "one of four", "inf and nan", "subnormal", "huge"])
def test_mvue_pack_follows_the_reference_through_special_values(kind, device):
    def make():
        torch.manual_seed(3)
        g = torch.randn(64, 64, device=device)
        if kind == "zeros":
            g = g * (torch.rand_like(g) < 0.4)
        elif kind == "one of four":
            g = g * (torch.arange(64, device=device)[:, None] % 4 == 2)
        elif kind == "inf and nan":
            g[::7, ::5], g[::11, ::3] = torch.inf, torch.nan
        else:
            g = g * (1e-41 if kind == "subnormal" else 1e38)
        return g, torch.tensor([7], device=device), BF16, "sm90"

    found, expected = both("mvue_pack", make)
    agree(found, expected, exact=True)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("select", ["transposable", "magnitude", "soft_threshold"])
@pytest.mark.parametrize("rows", [(128, 64), (64, 68), (12, 20)], ids=str)
def test_pack_weight_writes_stacked_operands(rows, select, search, layout, device):
    k, dtype = (72, FP32) if layout == "out_in" else (64, BF16)
    agree(*both("pack_weight_", lambda: weight_arguments(rows, k, select, search, layout, dtype, device)), exact=True)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_search_survives_nan_and_inf(layout, device):
    def make():
        arguments = weight_arguments((64,), 64, "transposable", True, layout, FP32, device)
        w = arguments[0][0]
        w[5, 9], w[40, 40], w[33, 1], w[32, 0] = torch.nan, torch.inf, torch.inf, -torch.inf
        return arguments

    (_, patterns, *_), (_, expected, *_) = both("pack_weight_", make)
    assert torch.equal(patterns, expected)
    assert patterns.max() < 90
    assert bool(masks.transposable_mask(make()[0][0])[40, 40]), "exactly one Inf of a block is kept"


@pytest.mark.parametrize("out", ["rows", "columns"])
@pytest.mark.parametrize("into", ["rows", "columns"])
def test_glu_takes_every_combination_of_layouts(into, out, device):
    torch.manual_seed(5)
    z, dh = torch.randn(37, 2 * 70, device=device).to(BF16), torch.randn(37, 70, device=device).to(BF16)
    if into == "columns":
        z, dh = z.t().contiguous().t(), dh.t().contiguous().t()
    with providers.only("reference"):
        expected_h, expected_dz = ops.glu(z, "silu", "second"), ops.glu_backward(dh, z, "silu", "second")
    h, dz = torch.empty_like(expected_h), torch.empty_like(expected_dz)
    if out == "columns":
        h, dz = h.t().contiguous().t(), dz.t().contiguous().t()
    glu_into(z, h, "silu", "second")
    glu_backward_into(dh, z, dz, "silu", "second")
    agree([h.contiguous(), dz.contiguous()], [expected_h, expected_dz], exact=False)


@pytest.mark.parametrize("act", DENSE)
def test_activations_hold_over_the_whole_range(act, device):
    a = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30])]).to(device)
    z = torch.cat([a, torch.ones_like(a)])[None].to(BF16)
    for op, args in (
        ("glu", (z, act, "first")),
        ("glu_backward", (torch.ones_like(z[:, : a.numel()]), z, act, "first")),
    ):
        with providers.only("triton"):
            found = getattr(ops, op)(*args).double()
        with providers.only("reference"):
            exact = getattr(ops, op)(*(x.double() if isinstance(x, torch.Tensor) else x for x in args))
        # Half a step of bf16, and 1e-6 absolute: where the function vanishes its fp32 value does only to that.
        assert ((found - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("act", ["relu2", "sine"])
def test_refuse_an_activation_without_a_formula(act, device):
    z, h = torch.ones(4, 8, device=device), torch.ones(4, 4, device=device)
    assert f"only, not {act}" in providers.refusal("glu", "triton", z, act, "first")
    assert f"only, not {act}" in providers.refusal("glu_backward", "triton", h, z, act, "first")
    with pytest.raises(Exception, match="no formula is written for this activation"):
        glu_into(z, h, act, "first")


@pytest.mark.gpu
def test_offsets_past_two_to_the_31_elements():
    g = torch.randn(65536, 33024, device="cuda", dtype=BF16)
    with providers.only("triton"):
        values, metadata = ops.mvue_pack(g, torch.tensor([3], device="cuda"), BF16, "sm90")
    last = slice(33024 - 64, 33024)
    packed = ops.unpack(values[last].contiguous(), metadata[:, -1:].contiguous(), 64, 65536, "sm90")
    kept = packed != 0
    assert (packed * g[:, last].t())[kept].min() > 0, "a kept value has the sign of its own element"
    assert kept.float().mean() > 0.49


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_unpack_what_lies_at_any_storage_offset(offset, device):
    w = torch.randn(64, 128, device=device, dtype=BF16)
    packed = ops.pack(w, masks.magnitude_mask(w), BF16, "sm90")
    moved = torch.empty(packed[0].numel() + offset, device=device, dtype=BF16)[offset:].view(packed[0].shape)
    moved.copy_(packed[0])
    refusal = providers.refusal("unpack", "triton", moved, packed[1], 64, 128, "sm90")
    assert (refusal is None) == (offset % 2 == 0)
    assert torch.equal(ops.unpack(moved, packed[1], 64, 128, "sm90"), ops.unpack(*packed, 64, 128, "sm90"))
