"""Golden forward and backward graphs after lowering. Look for: one `s24.mm` per GEMM and no dense one, `mvue_pack` in
front of each weight gradient, no transpose copy (clone) around a sparse GEMM, no parameter among the inputs of the
forward, fp32 weight gradients straight from `s24.mm` under autocast.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.graphs import captured_lowerings
from tests.masked import live_masks, masked_call


class GeluMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Gated(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act
        self.gate, self.up, self.down = (nn.Linear(*size, bias=False) for size in ((16, 32), (16, 32), (32, 16)))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class FusedGated(nn.Module):
    """One linear for both halves, as in Phi-3 (SwiGLU) or ModernBERT (GEGLU)."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act
        self.wi, self.wo = nn.Linear(16, 64, bias=False), nn.Linear(32, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.wi(x).chunk(2, dim=-1)
        return self.wo(self.act(gate) * up)


class Conv1DMLP(nn.Module):
    """HF GPT-2: weights stored [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(16, 32)), nn.Parameter(torch.randn(32))
        self.w2, self.b2 = nn.Parameter(torch.randn(32, 16)), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.addmm(self.b1, x.view(-1, 16), self.w1).view(*x.shape[:-1], 32)
        h = nn.functional.gelu(h, approximate="tanh")
        return torch.addmm(self.b2, h.view(-1, 32), self.w2).view(x.shape)


class Checkpointed(GeluMLP):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def lowered(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, autocast: bool = False, **options: Any
) -> tuple[str, str]:
    """The forward and backward graph of one training step; numerics are checked first."""
    x = torch.randn(2, 8, 16, requires_grad=True)
    fast = torch.compile(model, backend="s24", options={"inner": "aot_eager", **options}, fullgraph=True)
    with captured_lowerings(monkeypatch) as texts:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = fast(x)
            expected = masked_call(model, live_masks(model), x)
        torch.testing.assert_close(y, expected, rtol=2e-2 if autocast else 1e-5, atol=2e-2 if autocast else 1e-5)
        y.sum().backward()
    forward, backward = texts
    return forward, backward


def test_lower_a_gelu_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered(GeluMLP(), monkeypatch)
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[32]
%in2: f32[2, 8, 16]
%in3: f32[16, 32]
%in4: f32[16]
%in5: f32[32, 8]
%in6: i16[1, 1, 256]
%in7: f32[16, 16]
%in8: i16[1, 1, 256]
%in9: f32[16, 16]
%in10: i16[1, 1, 256]
%in11: f32[32, 8]
%in12: i16[1, 1, 256]
%reshape0: f32[16, 16] = reshape(%in2, [-1, 16])
%permute0: f32[16, 16] col = permute(%reshape0, [1, 0])
%s24.mm0: f32[32, 16] col = s24.mm(%in5, %in6, 32, 16, 'sm90', %permute0, %in1, 'col', f32)  # reference
%permute1: f32[16, 32] = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%mul0: f32[2, 8, 32] = mul(%reshape1, 0.5)
%mul1: f32[2, 8, 32] = mul(%reshape1, 0.7071067811865476)
%erf0: f32[2, 8, 32] = erf(%mul1)
%add0: f32[2, 8, 32] = add(%erf0, 1)
%mul2: f32[2, 8, 32] = mul(%mul0, %add0)
%reshape2: f32[16, 32] = reshape(%mul2, [-1, 32])
%permute2: f32[32, 16] col = permute(%reshape2, [1, 0])
%s24.mm1: f32[16, 16] col = s24.mm(%in9, %in10, 16, 32, 'sm90', %permute2, %in4, 'col', f32)  # reference
%permute3: f32[16, 16] = permute(%s24.mm1, [1, 0])
%reshape3: f32[2, 8, 16] = reshape(%permute3, [2, 8, 16])
%view0: f32[16, 32] = view(%mul2, [-1, 32])
%view1: f32[16, 16] = view(%in2, [-1, 16])
return [%reshape3, %in7, %in8, %in11, %in12, %reshape1, %view0, %view1]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: f32[16, 16]
%in1: i16[1, 1, 256]
%in2: f32[32, 8]
%in3: i16[1, 1, 256]
%in4: f32[2, 8, 32]
%in5: f32[16, 32]
%in6: f32[16, 16]
%in7: f32[2, 8, 16]
%view0: f32[16, 16] = view(%in7, [-1, 16])
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack0: (f32[16, 8], i16[2, 2, 256]) = s24.mvue_pack(%view0, %randint0, f32, 'sm90')  # reference
%getitem0: f32[16, 8] = getitem(%s24.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24.mvue_pack0, 1)
%s24.mm0: f32[16, 32] = s24.mm(%getitem0, %getitem1, 16, 16, 'sm90', %in5, None, 'row', f32)  # reference
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24.mm0, [16])
%getitem2: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: f32[16, 16] col = t(%view0)
%s24.mm1: f32[32, 16] col = s24.mm(%in2, %in3, 32, 16, 'sm90', %t0, None, 'col', f32)  # reference
%t1: f32[16, 32] = t(%s24.mm1)
%view1: f32[2, 8, 32] = view(%t1, [2, 8, 32])
%sum0: f32[16] = sum(%view0, [0], dtype=f32)
%mul0: f32[2, 8, 32] = mul(%in4, -0.7071067811865476)
%erfc0: f32[2, 8, 32] = erfc(%mul0)
%mul1: f32[2, 8, 32] = mul(%erfc0, 0.5)
%mul2: f32[2, 8, 32] = mul(%in4, -0.5)
%mul3: f32[2, 8, 32] = mul(%mul2, %in4)
%exp0: f32[2, 8, 32] = exp(%mul3)
%mul4: f32[2, 8, 32] = mul(%in4, %exp0)
%div0: f32[2, 8, 32] = div(%mul4, 2.5066282746310002)
%add0: f32[2, 8, 32] = add(%mul1, %div0)
%mul5: f32[2, 8, 32] = mul(%add0, %view1)
%view2: f32[16, 32] = view(%mul5, [-1, 32])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack1: (f32[32, 8], i16[2, 2, 256]) = s24.mvue_pack(%view2, %randint1, f32, 'sm90')  # reference
%getitem3: f32[32, 8] = getitem(%s24.mvue_pack1, 0)
%getitem4: i16[2, 2, 256] = getitem(%s24.mvue_pack1, 1)
%s24.mm2: f32[32, 16] = s24.mm(%getitem3, %getitem4, 32, 16, 'sm90', %in6, None, 'row', f32)  # reference
%split_with_sizes1: (f32[32, 16]) = split_with_sizes(%s24.mm2, [32])
%getitem5: f32[32, 16] = getitem(%split_with_sizes1, 0)
%t2: f32[32, 16] col = t(%view2)
%s24.mm3: f32[16, 16] col = s24.mm(%in0, %in1, 16, 32, 'sm90', %t2, None, 'col', f32)  # reference
%t3: f32[16, 16] = t(%s24.mm3)
%view3: f32[2, 8, 16] = view(%t3, [2, 8, 16])
%sum1: f32[32] = sum(%view2, [0], dtype=f32)
return [%getitem5, %sum1, %view3, %getitem2, %sum0, None, None, None, None, None, None, None, None]""",
    )


def test_lower_a_gelu_mlp_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    _, backward = lowered(GeluMLP(), monkeypatch, autocast=True)
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
%s24.mvue_pack0: (bf16[16, 8], i16[2, 2, 256]) = s24.mvue_pack(%view0, %randint0, bf16, 'sm90')  # reference
%getitem0: bf16[16, 8] = getitem(%s24.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24.mvue_pack0, 1)
%s24.mm0: f32[16, 32] = s24.mm(%getitem0, %getitem1, 16, 16, 'sm90', %in5, None, 'row', f32)  # reference
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24.mm0, [16])
%getitem2: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: bf16[16, 16] col = t(%view0)
%s24.mm1: bf16[32, 16] col = s24.mm(%in2, %in3, 32, 16, 'sm90', %t0, None, 'col', bf16)  # reference
%t1: bf16[16, 32] = t(%s24.mm1)
%view1: bf16[2, 8, 32] = view(%t1, [2, 8, 32])
%sum0: f32[16] = sum(%view0, [0], dtype=f32)
%convert_element_type0: f32[2, 8, 32] = convert_element_type(%in4, f32)
%mul0: f32[2, 8, 32] = mul(%convert_element_type0, -0.7071067811865476)
%erfc0: f32[2, 8, 32] = erfc(%mul0)
%mul1: f32[2, 8, 32] = mul(%erfc0, 0.5)
%mul2: f32[2, 8, 32] = mul(%convert_element_type0, -0.5)
%mul3: f32[2, 8, 32] = mul(%mul2, %convert_element_type0)
%exp0: f32[2, 8, 32] = exp(%mul3)
%mul4: f32[2, 8, 32] = mul(%convert_element_type0, %exp0)
%div0: f32[2, 8, 32] = div(%mul4, 2.5066282746310002)
%add0: f32[2, 8, 32] = add(%mul1, %div0)
%convert_element_type1: f32[2, 8, 32] = convert_element_type(%view1, f32)
%mul5: f32[2, 8, 32] = mul(%add0, %convert_element_type1)
%convert_element_type2: bf16[2, 8, 32] = convert_element_type(%mul5, bf16)
%view2: bf16[16, 32] = view(%convert_element_type2, [-1, 32])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack1: (bf16[32, 8], i16[2, 2, 256]) = s24.mvue_pack(%view2, %randint1, bf16, 'sm90')  # reference
%getitem3: bf16[32, 8] = getitem(%s24.mvue_pack1, 0)
%getitem4: i16[2, 2, 256] = getitem(%s24.mvue_pack1, 1)
%s24.mm2: f32[32, 16] = s24.mm(%getitem3, %getitem4, 32, 16, 'sm90', %in6, None, 'row', f32)  # reference
%split_with_sizes1: (f32[32, 16]) = split_with_sizes(%s24.mm2, [32])
%getitem5: f32[32, 16] = getitem(%split_with_sizes1, 0)
%t2: bf16[32, 16] col = t(%view2)
%s24.mm3: bf16[16, 16] col = s24.mm(%in0, %in1, 16, 32, 'sm90', %t2, None, 'col', bf16)  # reference
%t3: bf16[16, 16] = t(%s24.mm3)
%view3: bf16[2, 8, 16] = view(%t3, [2, 8, 16])
%sum1: f32[32] = sum(%view2, [0], dtype=f32)
%_to_copy0: f32[2, 8, 16] = _to_copy(%view3, dtype=f32, layout=torch.strided, device=device(type='cpu'))
return [%getitem5, %sum1, %_to_copy0, %getitem2, %sum0, None, None, None, None, None, None, None, None]""",
    )


def test_lower_a_swiglu_with_two_linears(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered(Gated(nn.functional.silu), monkeypatch)
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[2, 8, 16]
%in2: f32[32, 16]
%in3: f32[16, 32]
%in4: f32[64, 8]
%in5: i16[1, 1, 256]
%in6: f32[16, 32]
%in7: i16[1, 1, 256]
%in8: f32[16, 16]
%in9: i16[1, 1, 256]
%in10: f32[32, 8]
%in11: i16[1, 1, 256]
%reshape0: f32[16, 16] = reshape(%in1, [-1, 16])
%permute0: f32[16, 16] col = permute(%reshape0, [1, 0])
%s24.mm0: f32[64, 16] col = s24.mm(%in4, %in5, 64, 16, 'sm90', %permute0, None, 'col', f32)  # reference
%permute1: f32[16, 64] = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 64] = reshape(%permute1, [2, 8, 64])
%s24.glu0: f32[2, 8, 32] = s24.glu(%reshape1, 'silu', 'first')  # reference
%reshape2: f32[16, 32] = reshape(%s24.glu0, [-1, 32])
%permute2: f32[32, 16] col = permute(%reshape2, [1, 0])
%s24.mm1: f32[16, 16] col = s24.mm(%in8, %in9, 16, 32, 'sm90', %permute2, None, 'col', f32)  # reference
%permute3: f32[16, 16] = permute(%s24.mm1, [1, 0])
%reshape3: f32[2, 8, 16] = reshape(%permute3, [2, 8, 16])
%view0: f32[16, 32] = view(%s24.glu0, [-1, 32])
%view1: f32[16, 16] = view(%in1, [-1, 16])
return [%reshape3, %in6, %in7, %in10, %in11, %reshape1, %view0, %view1]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: f32[16, 32]
%in1: i16[1, 1, 256]
%in2: f32[32, 8]
%in3: i16[1, 1, 256]
%in4: f32[2, 8, 64]
%in5: f32[16, 32]
%in6: f32[16, 16]
%in7: f32[2, 8, 16]
%view0: f32[16, 16] = view(%in7, [-1, 16])
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack0: (f32[16, 8], i16[2, 2, 256]) = s24.mvue_pack(%view0, %randint0, f32, 'sm90')  # reference
%getitem0: f32[16, 8] = getitem(%s24.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24.mvue_pack0, 1)
%s24.mm0: f32[16, 32] = s24.mm(%getitem0, %getitem1, 16, 16, 'sm90', %in5, None, 'row', f32)  # reference
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24.mm0, [16])
%getitem2: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: f32[16, 16] col = t(%view0)
%s24.mm1: f32[32, 16] col = s24.mm(%in2, %in3, 32, 16, 'sm90', %t0, None, 'col', f32)  # reference
%t1: f32[16, 32] = t(%s24.mm1)
%view1: f32[2, 8, 32] = view(%t1, [2, 8, 32])
%s24.glu_backward0: f32[2, 8, 64] = s24.glu_backward(%view1, %in4, 'silu', 'first')  # reference
%view2: f32[16, 64] = view(%s24.glu_backward0, [-1, 64])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack1: (f32[64, 8], i16[2, 2, 256]) = s24.mvue_pack(%view2, %randint1, f32, 'sm90')  # reference
%getitem3: f32[64, 8] = getitem(%s24.mvue_pack1, 0)
%getitem4: i16[2, 2, 256] = getitem(%s24.mvue_pack1, 1)
%s24.mm2: f32[64, 16] = s24.mm(%getitem3, %getitem4, 64, 16, 'sm90', %in6, None, 'row', f32)  # reference
%split_with_sizes1: (f32[32, 16], f32[32, 16]) = split_with_sizes(%s24.mm2, [32, 32])
%getitem5: f32[32, 16] = getitem(%split_with_sizes1, 0)
%getitem6: f32[32, 16] = getitem(%split_with_sizes1, 1)
%t2: f32[64, 16] col = t(%view2)
%s24.mm3: f32[16, 16] col = s24.mm(%in0, %in1, 16, 64, 'sm90', %t2, None, 'col', f32)  # reference
%t3: f32[16, 16] = t(%s24.mm3)
%view3: f32[2, 8, 16] = view(%t3, [2, 8, 16])
return [%getitem5, %view3, %getitem6, %getitem2, None, None, None, None, None, None, None, None]""",
    )


def test_lower_a_geglu_with_one_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, _ = lowered(FusedGated(nn.functional.gelu), monkeypatch)
    assert_expected_inline(
        forward,
        """\
%in0: f32[64, 16]
%in1: f32[2, 8, 16]
%in2: f32[16, 32]
%in3: f32[64, 8]
%in4: i16[1, 1, 256]
%in5: f32[16, 32]
%in6: i16[1, 1, 256]
%in7: f32[16, 16]
%in8: i16[1, 1, 256]
%in9: f32[32, 8]
%in10: i16[1, 1, 256]
%reshape0: f32[16, 16] = reshape(%in1, [-1, 16])
%permute0: f32[16, 16] col = permute(%reshape0, [1, 0])
%s24.mm0: f32[64, 16] col = s24.mm(%in3, %in4, 64, 16, 'sm90', %permute0, None, 'col', f32)  # reference
%permute1: f32[16, 64] = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 64] = reshape(%permute1, [2, 8, 64])
%s24.glu0: f32[2, 8, 32] = s24.glu(%reshape1, 'gelu', 'first')  # reference
%reshape2: f32[16, 32] = reshape(%s24.glu0, [-1, 32])
%permute2: f32[32, 16] col = permute(%reshape2, [1, 0])
%s24.mm1: f32[16, 16] col = s24.mm(%in7, %in8, 16, 32, 'sm90', %permute2, None, 'col', f32)  # reference
%permute3: f32[16, 16] = permute(%s24.mm1, [1, 0])
%reshape3: f32[2, 8, 16] = reshape(%permute3, [2, 8, 16])
%view0: f32[16, 32] = view(%s24.glu0, [-1, 32])
%view1: f32[16, 16] = view(%in1, [-1, 16])
return [%reshape3, %in5, %in6, %in9, %in10, %reshape1, %view0, %view1]""",
    )


def test_lower_conv1d(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered(Conv1DMLP(), monkeypatch)
    assert_expected_inline(
        forward,
        """\
%in0: f32[32]
%in1: f32[2, 8, 16]
%in2: f32[16, 32]
%in3: f32[16]
%in4: f32[32, 16]
%in5: f32[32, 8]
%in6: i16[1, 1, 256]
%in7: f32[16, 16]
%in8: i16[1, 1, 256]
%in9: f32[16, 16]
%in10: i16[1, 1, 256]
%in11: f32[32, 8]
%in12: i16[1, 1, 256]
%reshape0: f32[16, 16] = reshape(%in1, [-1, 16])
%permute0: f32[16, 16] col = permute(%reshape0, [1, 0])
%s24.mm0: f32[32, 16] col = s24.mm(%in5, %in6, 32, 16, 'sm90', %permute0, %in0, 'col', f32)  # reference
%permute1: f32[16, 32] = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%mul0: f32[2, 8, 32] = mul(%reshape1, %reshape1)
%mul1: f32[2, 8, 32] = mul(%mul0, %reshape1)
%mul2: f32[2, 8, 32] = mul(%mul1, 0.044715)
%add0: f32[2, 8, 32] = add(%reshape1, %mul2)
%mul3: f32[2, 8, 32] = mul(%add0, 0.7978845608028654)
%mul4: f32[2, 8, 32] = mul(%reshape1, 0.5)
%tanh0: f32[2, 8, 32] = tanh(%mul3)
%add1: f32[2, 8, 32] = add(%tanh0, 1)
%mul5: f32[2, 8, 32] = mul(%mul4, %add1)
%reshape2: f32[16, 32] = reshape(%mul5, [-1, 32])
%permute2: f32[32, 16] col = permute(%reshape2, [1, 0])
%s24.mm1: f32[16, 16] col = s24.mm(%in9, %in10, 16, 32, 'sm90', %permute2, %in3, 'col', f32)  # reference
%permute3: f32[16, 16] = permute(%s24.mm1, [1, 0])
%reshape3: f32[2, 8, 16] = reshape(%permute3, [2, 8, 16])
%view0: f32[16, 32] = view(%mul5, [-1, 32])
%view1: f32[16, 16] = view(%in1, [-1, 16])
return [%reshape3, %in7, %in8, %in11, %in12, %reshape1, %view0, %view1]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: f32[16, 16]
%in1: i16[1, 1, 256]
%in2: f32[32, 8]
%in3: i16[1, 1, 256]
%in4: f32[2, 8, 32]
%in5: f32[16, 32]
%in6: f32[16, 16]
%in7: f32[2, 8, 16]
%view0: f32[16, 16] = view(%in7, [-1, 16])
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack0: (f32[16, 8], i16[2, 2, 256]) = s24.mvue_pack(%view0, %randint0, f32, 'sm90')  # reference
%getitem0: f32[16, 8] = getitem(%s24.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24.mvue_pack0, 1)
%s24.mm0: f32[16, 32] col = s24.mm(%getitem0, %getitem1, 16, 16, 'sm90', %in5, None, 'col', f32)  # reference
%split_with_sizes0: (f32[16, 32] col) = split_with_sizes(%s24.mm0, [16])
%getitem2: f32[16, 32] col = getitem(%split_with_sizes0, 0)
%t0: f32[32, 16] = t(%getitem2)
%t1: f32[16, 16] col = t(%view0)
%s24.mm1: f32[32, 16] col = s24.mm(%in2, %in3, 32, 16, 'sm90', %t1, None, 'col', f32)  # reference
%t2: f32[16, 32] = t(%s24.mm1)
%view1: f32[2, 8, 32] = view(%t2, [2, 8, 32])
%sum0: f32[16] = sum(%view0, [0], dtype=f32)
%mul0: f32[2, 8, 32] = mul(%in4, 0.044715)
%mul1: f32[2, 8, 32] = mul(%mul0, %in4)
%mul2: f32[2, 8, 32] = mul(%mul1, %in4)
%add0: f32[2, 8, 32] = add(%in4, %mul2)
%mul3: f32[2, 8, 32] = mul(%add0, 0.7978845608028654)
%tanh0: f32[2, 8, 32] = tanh(%mul3)
%mul4: f32[2, 8, 32] = mul(%in4, 0.134145)
%mul5: f32[2, 8, 32] = mul(%mul4, %in4)
%add1: f32[2, 8, 32] = add(%mul5, 1.0)
%mul6: f32[2, 8, 32] = mul(%add1, 0.7978845608028654)
%add2: f32[2, 8, 32] = add(%tanh0, 1.0)
%mul7: f32[2, 8, 32] = mul(%add2, 0.5)
%mul8: f32[2, 8, 32] = mul(%in4, 0.5)
%mul9: f32[2, 8, 32] = mul(%tanh0, %tanh0)
%sub0: f32[2, 8, 32] = sub(1.0, %mul9)
%mul10: f32[2, 8, 32] = mul(%mul8, %sub0)
%mul11: f32[2, 8, 32] = mul(%mul10, %mul6)
%add3: f32[2, 8, 32] = add(%mul7, %mul11)
%mul12: f32[2, 8, 32] = mul(%add3, %view1)
%view2: f32[16, 32] = view(%mul12, [-1, 32])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack1: (f32[32, 8], i16[2, 2, 256]) = s24.mvue_pack(%view2, %randint1, f32, 'sm90')  # reference
%getitem3: f32[32, 8] = getitem(%s24.mvue_pack1, 0)
%getitem4: i16[2, 2, 256] = getitem(%s24.mvue_pack1, 1)
%s24.mm2: f32[32, 16] col = s24.mm(%getitem3, %getitem4, 32, 16, 'sm90', %in6, None, 'col', f32)  # reference
%split_with_sizes1: (f32[32, 16] col) = split_with_sizes(%s24.mm2, [32])
%getitem5: f32[32, 16] col = getitem(%split_with_sizes1, 0)
%t3: f32[16, 32] = t(%getitem5)
%t4: f32[32, 16] col = t(%view2)
%s24.mm3: f32[16, 16] col = s24.mm(%in0, %in1, 16, 32, 'sm90', %t4, None, 'col', f32)  # reference
%t5: f32[16, 16] = t(%s24.mm3)
%view3: f32[2, 8, 16] = view(%t5, [2, 8, 16])
%sum1: f32[32] = sum(%view2, [0], dtype=f32)
return [%sum1, %view3, %t3, %sum0, %t0, None, None, None, None, None, None, None, None]""",
    )


def test_lower_a_checkpointed_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered(Checkpointed(), monkeypatch)
    assert_expected_inline(
        forward,
        """\
%in0: f32[2, 8, 16]
%in1: f32[32, 16]
%in2: f32[32]
%in3: f32[16, 32]
%in4: f32[16]
%in5: f32[32, 8]
%in6: i16[1, 1, 256]
%in7: f32[16, 16]
%in8: i16[1, 1, 256]
%in9: f32[16, 16]
%in10: i16[1, 1, 256]
%in11: f32[32, 8]
%in12: i16[1, 1, 256]
%reshape0: f32[16, 16] = reshape(%in0, [-1, 16])
%permute0: f32[16, 16] col = permute(%reshape0, [1, 0])
%s24.mm0: f32[32, 16] col = s24.mm(%in5, %in6, 32, 16, 'sm90', %permute0, %in2, 'col', f32)  # reference
%permute1: f32[16, 32] = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%mul0: f32[2, 8, 32] = mul(%reshape1, 0.5)
%mul1: f32[2, 8, 32] = mul(%reshape1, 0.7071067811865476)
%erf0: f32[2, 8, 32] = erf(%mul1)
%add0: f32[2, 8, 32] = add(%erf0, 1)
%mul2: f32[2, 8, 32] = mul(%mul0, %add0)
%reshape2: f32[16, 32] = reshape(%mul2, [-1, 32])
%permute2: f32[32, 16] col = permute(%reshape2, [1, 0])
%s24.mm1: f32[16, 16] col = s24.mm(%in9, %in10, 16, 32, 'sm90', %permute2, %in4, 'col', f32)  # reference
%permute3: f32[16, 16] = permute(%s24.mm1, [1, 0])
%reshape3: f32[2, 8, 16] = reshape(%permute3, [2, 8, 16])
return [%reshape3, %in0, %in1, %in2, %in5, %in6, %in7, %in8, %in11, %in12]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: f32[2, 8, 16]
%in1: f32[32, 16]
%in2: f32[32]
%in3: f32[32, 8]
%in4: i16[1, 1, 256]
%in5: f32[16, 16]
%in6: i16[1, 1, 256]
%in7: f32[32, 8]
%in8: i16[1, 1, 256]
%in9: f32[2, 8, 16]
%view0: f32[16, 16] = view(%in9, [-1, 16])
%reshape0: f32[16, 16] = reshape(%in0, [-1, 16])
%permute0: f32[16, 16] col = permute(%reshape0, [1, 0])
%s24.mm0: f32[32, 16] col = s24.mm(%in3, %in4, 32, 16, 'sm90', %permute0, %in2, 'col', f32)  # reference
%permute1: f32[16, 32] = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%mul0: f32[2, 8, 32] = mul(%reshape1, 0.5)
%mul1: f32[2, 8, 32] = mul(%reshape1, 0.7071067811865476)
%erf0: f32[2, 8, 32] = erf(%mul1)
%add0: f32[2, 8, 32] = add(%erf0, 1)
%mul2: f32[2, 8, 32] = mul(%mul0, %add0)
%view1: f32[16, 32] = view(%mul2, [-1, 32])
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack0: (f32[16, 8], i16[2, 2, 256]) = s24.mvue_pack(%view0, %randint0, f32, 'sm90')  # reference
%getitem0: f32[16, 8] = getitem(%s24.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24.mvue_pack0, 1)
%s24.mm1: f32[16, 32] = s24.mm(%getitem0, %getitem1, 16, 16, 'sm90', %view1, None, 'row', f32)  # reference
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24.mm1, [16])
%getitem2: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: f32[16, 16] col = t(%view0)
%s24.mm2: f32[32, 16] col = s24.mm(%in7, %in8, 32, 16, 'sm90', %t0, None, 'col', f32)  # reference
%t1: f32[16, 32] = t(%s24.mm2)
%view2: f32[2, 8, 32] = view(%t1, [2, 8, 32])
%sum0: f32[16] = sum(%view0, [0], dtype=f32)
%mul3: f32[2, 8, 32] = mul(%reshape1, -0.7071067811865476)
%erfc0: f32[2, 8, 32] = erfc(%mul3)
%mul4: f32[2, 8, 32] = mul(%erfc0, 0.5)
%mul5: f32[2, 8, 32] = mul(%reshape1, -0.5)
%mul6: f32[2, 8, 32] = mul(%mul5, %reshape1)
%exp0: f32[2, 8, 32] = exp(%mul6)
%mul7: f32[2, 8, 32] = mul(%reshape1, %exp0)
%div0: f32[2, 8, 32] = div(%mul7, 2.5066282746310002)
%add1: f32[2, 8, 32] = add(%mul4, %div0)
%mul8: f32[2, 8, 32] = mul(%add1, %view2)
%view3: f32[16, 32] = view(%mul8, [-1, 32])
%view4: f32[16, 16] = view(%in0, [-1, 16])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack1: (f32[32, 8], i16[2, 2, 256]) = s24.mvue_pack(%view3, %randint1, f32, 'sm90')  # reference
%getitem3: f32[32, 8] = getitem(%s24.mvue_pack1, 0)
%getitem4: i16[2, 2, 256] = getitem(%s24.mvue_pack1, 1)
%s24.mm3: f32[32, 16] = s24.mm(%getitem3, %getitem4, 32, 16, 'sm90', %view4, None, 'row', f32)  # reference
%split_with_sizes1: (f32[32, 16]) = split_with_sizes(%s24.mm3, [32])
%getitem5: f32[32, 16] = getitem(%split_with_sizes1, 0)
%t2: f32[32, 16] col = t(%view3)
%s24.mm4: f32[16, 16] col = s24.mm(%in5, %in6, 16, 32, 'sm90', %t2, None, 'col', f32)  # reference
%t3: f32[16, 16] = t(%s24.mm4)
%view5: f32[2, 8, 16] = view(%t3, [2, 8, 16])
%sum1: f32[32] = sum(%view3, [0], dtype=f32)
return [%view5, %getitem5, %sum1, %getitem2, %sum0, None, None, None, None, None, None, None, None]""",
    )


def test_lower_a_row_wise_recipe_with_a_dense_input_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8, 16, requires_grad=True)
    fast = torch.compile(GeluMLP(), backend="s24", options={"inner": "aot_eager", "recipe": "ste"}, fullgraph=True)
    with captured_lowerings(monkeypatch) as texts:
        fast(x).sum().backward()
    assert_expected_inline(
        texts[1],
        """\
%in0: f32[32, 8]
%in1: i16[1, 1, 256]
%in2: f32[16, 16]
%in3: i16[1, 1, 256]
%in4: f32[2, 8, 32]
%in5: f32[16, 32]
%in6: f32[16, 16]
%in7: f32[2, 8, 16]
%view0: f32[16, 16] = view(%in7, [-1, 16])
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack0: (f32[16, 8], i16[2, 2, 256]) = s24.mvue_pack(%view0, %randint0, f32, 'sm90')  # reference
%getitem0: f32[16, 8] = getitem(%s24.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24.mvue_pack0, 1)
%s24.mm0: f32[16, 32] = s24.mm(%getitem0, %getitem1, 16, 16, 'sm90', %in5, None, 'row', f32)  # reference
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24.mm0, [16])
%getitem2: f32[16, 32] = getitem(%split_with_sizes0, 0)
%s24.unpack0: f32[16, 32] = s24.unpack(%in2, %in3, 16, 32, 'sm90')  # reference
%mm0: f32[16, 32] = mm(%view0, %s24.unpack0)
%view1: f32[2, 8, 32] = view(%mm0, [2, 8, 32])
%sum0: f32[16] = sum(%view0, [0], dtype=f32)
%mul0: f32[2, 8, 32] = mul(%in4, -0.7071067811865476)
%erfc0: f32[2, 8, 32] = erfc(%mul0)
%mul1: f32[2, 8, 32] = mul(%erfc0, 0.5)
%mul2: f32[2, 8, 32] = mul(%in4, -0.5)
%mul3: f32[2, 8, 32] = mul(%mul2, %in4)
%exp0: f32[2, 8, 32] = exp(%mul3)
%mul4: f32[2, 8, 32] = mul(%in4, %exp0)
%div0: f32[2, 8, 32] = div(%mul4, 2.5066282746310002)
%add0: f32[2, 8, 32] = add(%mul1, %div0)
%mul5: f32[2, 8, 32] = mul(%add0, %view1)
%view2: f32[16, 32] = view(%mul5, [-1, 32])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24.mvue_pack1: (f32[32, 8], i16[2, 2, 256]) = s24.mvue_pack(%view2, %randint1, f32, 'sm90')  # reference
%getitem3: f32[32, 8] = getitem(%s24.mvue_pack1, 0)
%getitem4: i16[2, 2, 256] = getitem(%s24.mvue_pack1, 1)
%s24.mm1: f32[32, 16] = s24.mm(%getitem3, %getitem4, 32, 16, 'sm90', %in6, None, 'row', f32)  # reference
%split_with_sizes1: (f32[32, 16]) = split_with_sizes(%s24.mm1, [32])
%getitem5: f32[32, 16] = getitem(%split_with_sizes1, 0)
%s24.unpack1: f32[32, 16] = s24.unpack(%in0, %in1, 32, 16, 'sm90')  # reference
%mm1: f32[16, 16] = mm(%view2, %s24.unpack1)
%view3: f32[2, 8, 16] = view(%mm1, [2, 8, 16])
%sum1: f32[32] = sum(%view2, [0], dtype=f32)
return [%getitem5, %sum1, %view3, %getitem2, %sum0, None, None, None, None]""",
    )
