"""Golden graphs for a faked sm_90 target: what lowering fuses where Hopper's kernels exist.

Look for: the activation inside the GEMM (`mm_act`, `mm_dact_sum`), bias gradients in the kernel that makes or reads
their dZ (`mm_dact_sum`, `mvue_pack_sum`), the GLU of a gated layer inside its GEMMs, dX of an fp32 x in fp32 straight
from its GEMM, and no "reference" behind any op.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn

from s24compile.kernels.target import Target
from tests.graphs import captured_lowerings
from tests.lowering.test_graphs import FusedGated, Gated, GeluMLP

HOPPER = Target.parse("sm_90")


def lowered_for_hopper(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, x: Tensor | None = None, **options: Any
) -> tuple[str, str]:
    """The forward and backward graph of one bf16 autocast step with fp32 master weights."""
    x = torch.randn(2, 8, 16, requires_grad=True) if x is None else x
    fast = torch.compile(model, backend="s24", options={"inner": "aot_eager", **options}, fullgraph=True)
    with captured_lowerings(monkeypatch, HOPPER) as texts:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = fast(x)
        y.sum().backward()
    forward, backward = texts
    return forward, backward


def test_fuse_a_gelu_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered_for_hopper(GeluMLP(), monkeypatch)
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[32]
%in2: f32[2, 8, 16]
%in3: f32[16, 32]
%in4: f32[16]
%in5: bf16[32, 8]
%in6: i16[1, 1, 256]
%in7: bf16[16, 16]
%in8: i16[1, 1, 256]
%in9: bf16[16, 16]
%in10: i16[1, 1, 256]
%in11: bf16[32, 8]
%in12: i16[1, 1, 256]
%_to_copy0: bf16[2, 8, 16] = _to_copy(%in2, dtype=bf16)
%reshape0: bf16[16, 16] = reshape(%_to_copy0, [-1, 16])
%permute0: bf16[16, 16] col = permute(%reshape0, [1, 0])
%s24_cutlass.mm_act0: (bf16[32, 16] col, bf16[32, 16] col) = s24_cutlass.mm_act(%in5, %in6, 32, 16, 'sm90', %permute0, %in1, 'gelu', 'col')  # cutlass
%getitem0: bf16[32, 16] col = getitem(%s24_cutlass.mm_act0, 0)
%getitem1: bf16[32, 16] col = getitem(%s24_cutlass.mm_act0, 1)
%permute1: bf16[16, 32] = permute(%getitem0, [1, 0])
%reshape1: bf16[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%permute2: bf16[16, 32] = permute(%getitem1, [1, 0])
%reshape2: bf16[2, 8, 32] = reshape(%permute2, [2, 8, 32])
%reshape3: bf16[16, 32] = reshape(%reshape2, [-1, 32])
%permute3: bf16[32, 16] col = permute(%reshape3, [1, 0])
%s24_cutlass.mm0: bf16[16, 16] col = s24_cutlass.mm(%in9, %in10, 16, 32, 'sm90', %permute3, %in4, 'col', bf16)  # cutlass
%permute4: bf16[16, 16] = permute(%s24_cutlass.mm0, [1, 0])
%reshape4: bf16[2, 8, 16] = reshape(%permute4, [2, 8, 16])
%view0: bf16[16, 32] = view(%reshape2, [-1, 32])
%view1: bf16[16, 16] = view(%_to_copy0, [-1, 16])
return [%reshape4, %in7, %in8, %in11, %in12, %reshape1, %view0, %view1]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: bf16[16, 16]
%in1: i16[1, 1, 256]
%in2: bf16[32, 8]
%in3: i16[1, 1, 256]
%in4: bf16[2, 8, 32]
%in5: bf16[16, 32]
%in6: bf16[16, 16]
%in7: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in7, [-1, 16])
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.mvue_pack_sum0: (bf16[16, 8], i16[2, 2, 256], f32[16]) = s24_triton.mvue_pack_sum(%view0, %randint0, bf16, 'sm90')  # triton
%getitem0: f32[16] = getitem(%s24_triton.mvue_pack_sum0, 2)
%getitem1: bf16[16, 8] = getitem(%s24_triton.mvue_pack_sum0, 0)
%getitem2: i16[2, 2, 256] = getitem(%s24_triton.mvue_pack_sum0, 1)
%s24_cutlass.mm0: f32[16, 32] = s24_cutlass.mm(%getitem1, %getitem2, 16, 16, 'sm90', %in5, None, 'row', f32)  # cutlass
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24_cutlass.mm0, [16])
%getitem3: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: bf16[16, 16] col = t(%view0)
%reshape0: bf16[16, 32] = reshape(%in4, [-1, 32])
%permute0: bf16[32, 16] col = permute(%reshape0, [1, 0])
%s24_cutlass.mm_dact_sum0: (bf16[32, 16] col, f32[32]) = s24_cutlass.mm_dact_sum(%in2, %in3, 32, 16, 'sm90', %t0, %permute0, 'gelu', 'col')  # cutlass
%getitem4: f32[32] = getitem(%s24_cutlass.mm_dact_sum0, 1)
%getitem5: bf16[32, 16] col = getitem(%s24_cutlass.mm_dact_sum0, 0)
%permute1: bf16[16, 32] = permute(%getitem5, [1, 0])
%reshape1: bf16[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%view1: bf16[16, 32] = view(%reshape1, [-1, 32])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.mvue_pack0: (bf16[32, 8], i16[2, 2, 256]) = s24_triton.mvue_pack(%view1, %randint1, bf16, 'sm90')  # triton
%getitem6: bf16[32, 8] = getitem(%s24_triton.mvue_pack0, 0)
%getitem7: i16[2, 2, 256] = getitem(%s24_triton.mvue_pack0, 1)
%s24_cutlass.mm1: f32[32, 16] = s24_cutlass.mm(%getitem6, %getitem7, 32, 16, 'sm90', %in6, None, 'row', f32)  # cutlass
%split_with_sizes1: (f32[32, 16]) = split_with_sizes(%s24_cutlass.mm1, [32])
%getitem8: f32[32, 16] = getitem(%split_with_sizes1, 0)
%t1: bf16[32, 16] col = t(%view1)
%s24_cutlass.mm2: f32[16, 16] col = s24_cutlass.mm(%in0, %in1, 16, 32, 'sm90', %t1, None, 'col', f32)  # cutlass
%t2: f32[16, 16] = t(%s24_cutlass.mm2)
%view2: f32[2, 8, 16] = view(%t2, [2, 8, 16])
return [%getitem8, %getitem4, %view2, %getitem3, %getitem0, None, None, None, None, None, None, None, None]""",
    )


def test_fuse_a_swiglu(monkeypatch: pytest.MonkeyPatch) -> None:
    _, backward = lowered_for_hopper(Gated(nn.functional.silu), monkeypatch)
    assert_expected_inline(
        backward,
        """\
%in0: bf16[16, 32]
%in1: i16[1, 1, 256]
%in2: bf16[32, 8]
%in3: i16[1, 1, 256]
%in4: bf16[2, 8, 64]
%in5: bf16[16, 32]
%in6: bf16[16, 16]
%in7: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in7, [-1, 16])
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.mvue_pack0: (bf16[16, 8], i16[2, 2, 256]) = s24_triton.mvue_pack(%view0, %randint0, bf16, 'sm90')  # triton
%getitem0: bf16[16, 8] = getitem(%s24_triton.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24_triton.mvue_pack0, 1)
%s24_cutlass.mm0: f32[16, 32] = s24_cutlass.mm(%getitem0, %getitem1, 16, 16, 'sm90', %in5, None, 'row', f32)  # cutlass
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24_cutlass.mm0, [16])
%getitem2: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: bf16[16, 16] col = t(%view0)
%reshape0: bf16[16, 64] = reshape(%in4, [-1, 64])
%permute0: bf16[64, 16] col = permute(%reshape0, [1, 0])
%s24_cutlass.mm_dglu0: bf16[64, 16] col = s24_cutlass.mm_dglu(%in2, %in3, 32, 16, 'sm90', %t0, %permute0, 'silu', 'first')  # cutlass
%permute1: bf16[16, 64] = permute(%s24_cutlass.mm_dglu0, [1, 0])
%reshape1: bf16[2, 8, 64] = reshape(%permute1, [2, 8, 64])
%view1: bf16[16, 64] = view(%reshape1, [-1, 64])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.mvue_pack1: (bf16[64, 8], i16[2, 2, 256]) = s24_triton.mvue_pack(%view1, %randint1, bf16, 'sm90')  # triton
%getitem3: bf16[64, 8] = getitem(%s24_triton.mvue_pack1, 0)
%getitem4: i16[2, 2, 256] = getitem(%s24_triton.mvue_pack1, 1)
%s24_cutlass.mm1: f32[64, 16] = s24_cutlass.mm(%getitem3, %getitem4, 64, 16, 'sm90', %in6, None, 'row', f32)  # cutlass
%split_with_sizes1: (f32[32, 16], f32[32, 16]) = split_with_sizes(%s24_cutlass.mm1, [32, 32])
%getitem5: f32[32, 16] = getitem(%split_with_sizes1, 0)
%getitem6: f32[32, 16] = getitem(%split_with_sizes1, 1)
%t1: bf16[64, 16] col = t(%view1)
%s24_cutlass.mm2: f32[16, 16] col = s24_cutlass.mm(%in0, %in1, 16, 64, 'sm90', %t1, None, 'col', f32)  # cutlass
%t2: f32[16, 16] = t(%s24_cutlass.mm2)
%view2: f32[2, 8, 16] = view(%t2, [2, 8, 16])
return [%getitem5, %view2, %getitem6, %getitem2, None, None, None, None, None, None, None, None]""",
    )


@pytest.mark.parametrize("make", [GeluMLP, lambda: Gated(nn.functional.silu), lambda: FusedGated(nn.functional.gelu)])
def test_leave_no_op_to_the_reference(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in lowered_for_hopper(make(), monkeypatch):
        assert "# reference" not in text
        assert "clone" not in text


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("gradient", ["dense", "mvue"])
def test_sum_a_bias_gradient_where_dz_is_made_or_dy_read(
    gradient: str, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 8, 16, requires_grad=True)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 1)
    _, backward = lowered_for_hopper(GeluMLP(), monkeypatch, x, gradient=gradient)
    assert backward.count("= s24_cutlass.mm_dact_sum(") == 1
    assert backward.count("= s24_triton.mvue_pack_sum(") == (gradient == "mvue")
    assert backward.count("= sum(") == (gradient == "dense"), "dY comes from outside: nothing of ours reads it"


def test_leave_an_activation_alone_whose_gradient_is_read_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    class Watched(GeluMLP):
        def forward(self, x: Tensor) -> Tensor:
            h = nn.functional.gelu(self.fc1(x))
            return self.fc2(nn.functional.dropout(h, 0.5))

    forward, backward = lowered_for_hopper(Watched(), monkeypatch)
    assert "s24_cutlass.mm_act" in forward
    assert "mm_dact" not in backward


def test_sum_the_bias_gradient_of_a_dense_linear_in_front(monkeypatch: pytest.MonkeyPatch) -> None:
    _, backward = lowered_for_hopper(GeluMLP(), monkeypatch, recipe="fst-down")
    assert_expected_inline(
        backward,
        """\
%in0: bf16[32, 8]
%in1: i16[1, 1, 256]
%in2: bf16[16, 16]
%in3: bf16[2, 8, 32]
%in4: bf16[16, 32]
%in5: bf16[32, 16]
%in6: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in6, [-1, 16])
%t0: bf16[16, 16] col = t(%view0)
%mm0: bf16[16, 32] = mm(%t0, %in4)
%split_with_sizes0: (bf16[16, 32]) = split_with_sizes(%mm0, [16])
%getitem0: bf16[16, 32] = getitem(%split_with_sizes0, 0)
%_to_copy0: f32[16, 32] = _to_copy(%getitem0, dtype=f32)
%sum0: f32[16] = sum(%view0, [0], dtype=f32)
%reshape0: bf16[16, 32] = reshape(%in3, [-1, 32])
%permute0: bf16[32, 16] col = permute(%reshape0, [1, 0])
%s24_cutlass.mm_dact_sum0: (bf16[32, 16] col, f32[32]) = s24_cutlass.mm_dact_sum(%in0, %in1, 32, 16, 'sm90', %t0, %permute0, 'gelu', 'col')  # cutlass
%getitem1: f32[32] = getitem(%s24_cutlass.mm_dact_sum0, 1)
%convert_element_type0: bf16[32] = convert_element_type(%getitem1, bf16)
%unsqueeze0: bf16[1, 32] = unsqueeze(%convert_element_type0, 0)
%getitem2: bf16[32, 16] col = getitem(%s24_cutlass.mm_dact_sum0, 0)
%permute1: bf16[16, 32] = permute(%getitem2, [1, 0])
%reshape1: bf16[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%view1: bf16[16, 32] = view(%reshape1, [16, 32])
%mm1: bf16[16, 16] = mm(%view1, %in5)
%t1: bf16[32, 16] col = t(%view1)
%mm2: bf16[32, 16] = mm(%t1, %in2)
%t2: bf16[16, 32] col = t(%mm2)
%view2: bf16[32] = view(%unsqueeze0, [32])
%t3: bf16[32, 16] = t(%t2)
%view3: bf16[2, 8, 16] = view(%mm1, [2, 8, 16])
%_to_copy1: f32[2, 8, 16] = _to_copy(%view3, dtype=f32, layout=torch.strided, device=device(type='cpu'))
%_to_copy2: f32[32, 16] = _to_copy(%t3, dtype=f32, layout=torch.strided, device=device(type='cpu'))
%_to_copy3: f32[32] = _to_copy(%view2, dtype=f32, layout=torch.strided, device=device(type='cpu'))
return [%_to_copy2, %_to_copy3, %_to_copy1, %_to_copy0, %sum0, None, None, None, None]""",
    )


class Parallel(nn.Module):
    """Two projections into one sum, as attention and feed-forward layer of a parallel block have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(16, 32, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x.tanh()) + self.b(x.sigmoid())


@pytest.mark.parametrize("dynamic", [False, True])
def test_pack_a_gradient_once_for_all_who_need_it(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8, 16, requires_grad=True)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 1)
    _, backward = lowered_for_hopper(Parallel(), monkeypatch, x, targets="linear")
    assert backward.count("s24_triton.mvue_pack(") == 1
    assert backward.count("s24_cutlass.mm(") == 4


def test_pack_different_gradients_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    class Apart(Parallel):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.tanh()) + 2 * self.b(x.sigmoid())

    _, backward = lowered_for_hopper(Apart(), monkeypatch, targets="linear")
    assert backward.count("s24_triton.mvue_pack(") == 2
