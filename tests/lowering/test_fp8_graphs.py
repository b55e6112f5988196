"""Golden graphs of precision="fp8" for a faked sm_90. Look for: each tensor quantised once, both ways from one read
where a backward needs it; the amax of H and of dZ from the GEMM that makes them; no tensor in 16 bits that is saved for
a weight gradient; no "reference" behind any op.
"""

from __future__ import annotations

import pytest
from expecttest import assert_expected_inline
from torch import nn

from tests.lowering.test_graphs import Gated, GeluMLP
from tests.lowering.test_hopper_graphs import lowered_for_hopper


def test_fuse_a_gelu_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered_for_hopper(GeluMLP(), monkeypatch, precision="fp8")
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[32]
%in2: f32[2, 8, 16]
%in3: f32[16, 32]
%in4: f32[16]
%in5: torch.float8_e4m3fn[32, 8] strides (16, 1)
%in6: u8[1, 1, 1024]
%in7: f32[1]
%in8: f32[1]
%in9: f32[1]
%in10: torch.float8_e4m3fn[16, 16]
%in11: u8[1, 1, 1024]
%in12: torch.float8_e4m3fn[16, 16]
%in13: u8[1, 1, 1024]
%in14: f32[1]
%in15: f32[1]
%in16: f32[1]
%in17: torch.float8_e4m3fn[32, 8] strides (16, 1)
%in18: u8[1, 1, 1024]
%_to_copy0: bf16[2, 8, 16] = _to_copy(%in2, dtype=bf16)
%reshape0: bf16[16, 16] = reshape(%_to_copy0, [-1, 16])
%s24_triton.amax0: f32[1] = s24_triton.amax(%reshape0)  # triton
%s24_triton.quantise0: (torch.float8_e4m3fn[16, 16], torch.float8_e4m3fn[16, 16], f32[1]) = s24_triton.quantise(%reshape0, %s24_triton.amax0, torch.float8_e4m3fn, 'both')  # triton
%getitem0: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 0)
%permute0: torch.float8_e4m3fn[16, 16] col = permute(%getitem0, [1, 0])
%getitem1: f32[1] = getitem(%s24_triton.quantise0, 2)
%s24_cutlass.scaled_mm_act0: (bf16[32, 16] col, bf16[32, 16] col, f32[1]) = s24_cutlass.scaled_mm_act(%in5, %in6, 32, 16, 'sm90', %in7, %permute0, %getitem1, %in1, 'gelu', 'col', bf16, False)  # cutlass
%getitem2: bf16[32, 16] col = getitem(%s24_cutlass.scaled_mm_act0, 0)
%getitem3: bf16[32, 16] col = getitem(%s24_cutlass.scaled_mm_act0, 1)
%getitem4: f32[1] = getitem(%s24_cutlass.scaled_mm_act0, 2)
%permute1: bf16[16, 32] = permute(%getitem2, [1, 0])
%reshape1: bf16[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%getitem5: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 1)
%getitem6: f32[1] = getitem(%s24_triton.quantise0, 2)
%permute2: bf16[16, 32] = permute(%getitem3, [1, 0])
%reshape2: bf16[2, 8, 32] = reshape(%permute2, [2, 8, 32])
%reshape3: bf16[16, 32] = reshape(%reshape2, [-1, 32])
%s24_triton.quantise1: (torch.float8_e4m3fn[16, 32], torch.float8_e4m3fn[32, 16], f32[1]) = s24_triton.quantise(%reshape3, %getitem4, torch.float8_e4m3fn, 'both')  # triton
%getitem7: torch.float8_e4m3fn[16, 32] = getitem(%s24_triton.quantise1, 0)
%permute3: torch.float8_e4m3fn[32, 16] col = permute(%getitem7, [1, 0])
%getitem8: f32[1] = getitem(%s24_triton.quantise1, 2)
%s24_cutlass.scaled_mm0: bf16[16, 16] col = s24_cutlass.scaled_mm(%in12, %in13, 16, 32, 'sm90', %in14, %permute3, %getitem8, %in4, 'col', bf16, False)  # cutlass
%permute4: bf16[16, 16] = permute(%s24_cutlass.scaled_mm0, [1, 0])
%reshape4: bf16[2, 8, 16] = reshape(%permute4, [2, 8, 16])
%getitem9: torch.float8_e4m3fn[32, 16] = getitem(%s24_triton.quantise1, 1)
%getitem10: f32[1] = getitem(%s24_triton.quantise1, 2)
%t0: torch.float8_e4m3fn[16, 32] col = t(%getitem9)
%t1: torch.float8_e4m3fn[16, 16] col = t(%getitem5)
return [%reshape4, %in7, %in10, %in11, %in14, %in17, %in18, %reshape1, %getitem6, %s24_triton.amax0, %getitem10, %getitem4, %t0, %t1]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: f32[1]
%in1: torch.float8_e4m3fn[16, 16]
%in2: u8[1, 1, 1024]
%in3: f32[1]
%in4: torch.float8_e4m3fn[32, 8] strides (16, 1)
%in5: u8[1, 1, 1024]
%in6: bf16[2, 8, 32]
%in7: f32[1]
%in8: f32[1]
%in9: f32[1]
%in10: f32[1]
%in11: torch.float8_e4m3fn[16, 32] col
%in12: torch.float8_e4m3fn[16, 16] col
%in13: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in13, [-1, 16])
%s24_triton.amax0: f32[1] = s24_triton.amax(%view0)  # triton
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.quantise_pack0: (torch.float8_e5m2[16, 16], torch.float8_e5m2[16, 16], u8[2, 2, 1024], f32[1], f32[1], f32[16]) = s24_triton.quantise_pack(%view0, %s24_triton.amax0, %randint0, torch.float8_e5m2, 'sm90', True, True)  # triton
%getitem0: torch.float8_e5m2[16, 16] = getitem(%s24_triton.quantise_pack0, 0)
%getitem1: torch.float8_e5m2[16, 16] = getitem(%s24_triton.quantise_pack0, 1)
%getitem2: u8[2, 2, 1024] = getitem(%s24_triton.quantise_pack0, 2)
%getitem3: f32[1] = getitem(%s24_triton.quantise_pack0, 3)
%getitem4: f32[1] = getitem(%s24_triton.quantise_pack0, 4)
%getitem5: f32[16] = getitem(%s24_triton.quantise_pack0, 5)
%s24_cutlass.scaled_mm0: f32[16, 32] = s24_cutlass.scaled_mm(%getitem1, %getitem2, 16, 16, 'sm90', %getitem4, %in11, %in9, None, 'row', f32, False)  # cutlass
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24_cutlass.scaled_mm0, [16])
%getitem6: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: torch.float8_e5m2[16, 16] col = t(%getitem0)
%reshape0: bf16[16, 32] = reshape(%in6, [-1, 32])
%permute0: bf16[32, 16] col = permute(%reshape0, [1, 0])
%s24_cutlass.scaled_mm_dact0: (bf16[32, 16] col, f32[32], f32[1]) = s24_cutlass.scaled_mm_dact(%in4, %in5, 32, 16, 'sm90', %in3, %t0, %getitem3, %permute0, 'gelu', 'col', True, False)  # cutlass
%getitem7: f32[1] = getitem(%s24_cutlass.scaled_mm_dact0, 2)
%getitem8: bf16[32, 16] col = getitem(%s24_cutlass.scaled_mm_dact0, 0)
%permute1: bf16[16, 32] = permute(%getitem8, [1, 0])
%reshape1: bf16[2, 8, 32] = reshape(%permute1, [2, 8, 32])
%view1: bf16[16, 32] = view(%reshape1, [-1, 32])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%getitem9: f32[32] = getitem(%s24_cutlass.scaled_mm_dact0, 1)
%s24_triton.quantise_pack1: (torch.float8_e5m2[16, 32], torch.float8_e5m2[32, 16], u8[2, 2, 1024], f32[1], f32[1], f32[0]) = s24_triton.quantise_pack(%view1, %getitem7, %randint1, torch.float8_e5m2, 'sm90', True, False)  # triton
%getitem10: torch.float8_e5m2[16, 32] = getitem(%s24_triton.quantise_pack1, 0)
%getitem11: torch.float8_e5m2[32, 16] = getitem(%s24_triton.quantise_pack1, 1)
%getitem12: u8[2, 2, 1024] = getitem(%s24_triton.quantise_pack1, 2)
%getitem13: f32[1] = getitem(%s24_triton.quantise_pack1, 3)
%getitem14: f32[1] = getitem(%s24_triton.quantise_pack1, 4)
%s24_cutlass.scaled_mm1: f32[32, 16] = s24_cutlass.scaled_mm(%getitem11, %getitem12, 32, 16, 'sm90', %getitem14, %in12, %in7, None, 'row', f32, False)  # cutlass
%split_with_sizes1: (f32[32, 16]) = split_with_sizes(%s24_cutlass.scaled_mm1, [32])
%getitem15: f32[32, 16] = getitem(%split_with_sizes1, 0)
%t1: torch.float8_e5m2[32, 16] col = t(%getitem10)
%s24_cutlass.scaled_mm2: f32[16, 16] col = s24_cutlass.scaled_mm(%in1, %in2, 16, 32, 'sm90', %in0, %t1, %getitem13, None, 'col', f32, False)  # cutlass
%t2: f32[16, 16] = t(%s24_cutlass.scaled_mm2)
%view2: f32[2, 8, 16] = view(%t2, [2, 8, 16])
return [%getitem15, %getitem9, %view2, %getitem6, %getitem5, None, None, None, %in8, %getitem7, None, None, None, None, None, %in10, %s24_triton.amax0, None, None]""",
    )


def test_fuse_a_gated_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered_for_hopper(Gated(nn.functional.silu), monkeypatch, precision="fp8")
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[2, 8, 16]
%in2: f32[32, 16]
%in3: f32[16, 32]
%in4: torch.float8_e4m3fn[64, 8] strides (16, 1)
%in5: u8[1, 1, 1024]
%in6: f32[1]
%in7: f32[1]
%in8: f32[1]
%in9: torch.float8_e4m3fn[16, 32]
%in10: u8[1, 1, 1024]
%in11: torch.float8_e4m3fn[16, 16]
%in12: u8[1, 1, 1024]
%in13: f32[1]
%in14: f32[1]
%in15: f32[1]
%in16: torch.float8_e4m3fn[32, 8] strides (16, 1)
%in17: u8[1, 1, 1024]
%_to_copy0: bf16[2, 8, 16] = _to_copy(%in1, dtype=bf16)
%reshape0: bf16[16, 16] = reshape(%_to_copy0, [-1, 16])
%s24_triton.amax0: f32[1] = s24_triton.amax(%reshape0)  # triton
%s24_triton.quantise0: (torch.float8_e4m3fn[16, 16], torch.float8_e4m3fn[16, 16], f32[1]) = s24_triton.quantise(%reshape0, %s24_triton.amax0, torch.float8_e4m3fn, 'both')  # triton
%getitem0: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 0)
%permute0: torch.float8_e4m3fn[16, 16] col = permute(%getitem0, [1, 0])
%getitem1: f32[1] = getitem(%s24_triton.quantise0, 2)
%s24_cutlass.scaled_mm0: bf16[64, 16] col = s24_cutlass.scaled_mm(%in4, %in5, 64, 16, 'sm90', %in6, %permute0, %getitem1, None, 'col', bf16, False)  # cutlass
%permute1: bf16[16, 64] = permute(%s24_cutlass.scaled_mm0, [1, 0])
%reshape1: bf16[2, 8, 64] = reshape(%permute1, [2, 8, 64])
%getitem2: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 1)
%getitem3: f32[1] = getitem(%s24_triton.quantise0, 2)
%s24_triton.glu0: bf16[2, 8, 32] = s24_triton.glu(%reshape1, 'silu', 'first')  # triton
%reshape2: bf16[16, 32] = reshape(%s24_triton.glu0, [-1, 32])
%s24_triton.amax1: f32[1] = s24_triton.amax(%reshape2)  # triton
%s24_triton.quantise1: (torch.float8_e4m3fn[16, 32], torch.float8_e4m3fn[32, 16], f32[1]) = s24_triton.quantise(%reshape2, %s24_triton.amax1, torch.float8_e4m3fn, 'both')  # triton
%getitem4: torch.float8_e4m3fn[16, 32] = getitem(%s24_triton.quantise1, 0)
%permute2: torch.float8_e4m3fn[32, 16] col = permute(%getitem4, [1, 0])
%getitem5: f32[1] = getitem(%s24_triton.quantise1, 2)
%s24_cutlass.scaled_mm1: bf16[16, 16] col = s24_cutlass.scaled_mm(%in11, %in12, 16, 32, 'sm90', %in13, %permute2, %getitem5, None, 'col', bf16, False)  # cutlass
%permute3: bf16[16, 16] = permute(%s24_cutlass.scaled_mm1, [1, 0])
%reshape3: bf16[2, 8, 16] = reshape(%permute3, [2, 8, 16])
%getitem6: torch.float8_e4m3fn[32, 16] = getitem(%s24_triton.quantise1, 1)
%getitem7: f32[1] = getitem(%s24_triton.quantise1, 2)
%t0: torch.float8_e4m3fn[16, 32] col = t(%getitem6)
%t1: torch.float8_e4m3fn[16, 16] col = t(%getitem2)
return [%reshape3, %in6, %in9, %in10, %in13, %in16, %in17, %reshape1, %getitem3, %s24_triton.amax0, %getitem7, %s24_triton.amax1, %t0, %t1]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: f32[1]
%in1: torch.float8_e4m3fn[16, 32]
%in2: u8[1, 1, 1024]
%in3: f32[1]
%in4: torch.float8_e4m3fn[32, 8] strides (16, 1)
%in5: u8[1, 1, 1024]
%in6: bf16[2, 8, 64]
%in7: f32[1]
%in8: f32[1]
%in9: f32[1]
%in10: f32[1]
%in11: torch.float8_e4m3fn[16, 32] col
%in12: torch.float8_e4m3fn[16, 16] col
%in13: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in13, [-1, 16])
%s24_triton.amax0: f32[1] = s24_triton.amax(%view0)  # triton
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.quantise_pack0: (torch.float8_e5m2[16, 16], torch.float8_e5m2[16, 16], u8[2, 2, 1024], f32[1], f32[1], f32[0]) = s24_triton.quantise_pack(%view0, %s24_triton.amax0, %randint0, torch.float8_e5m2, 'sm90', True, False)  # triton
%getitem0: torch.float8_e5m2[16, 16] = getitem(%s24_triton.quantise_pack0, 0)
%getitem1: torch.float8_e5m2[16, 16] = getitem(%s24_triton.quantise_pack0, 1)
%getitem2: u8[2, 2, 1024] = getitem(%s24_triton.quantise_pack0, 2)
%getitem3: f32[1] = getitem(%s24_triton.quantise_pack0, 3)
%getitem4: f32[1] = getitem(%s24_triton.quantise_pack0, 4)
%s24_cutlass.scaled_mm0: f32[16, 32] = s24_cutlass.scaled_mm(%getitem1, %getitem2, 16, 16, 'sm90', %getitem4, %in11, %in9, None, 'row', f32, False)  # cutlass
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%s24_cutlass.scaled_mm0, [16])
%getitem5: f32[16, 32] = getitem(%split_with_sizes0, 0)
%t0: torch.float8_e5m2[16, 16] col = t(%getitem0)
%reshape0: bf16[16, 64] = reshape(%in6, [-1, 64])
%permute0: bf16[64, 16] col = permute(%reshape0, [1, 0])
%s24_cutlass.scaled_mm_dglu0: (bf16[64, 16] col, f32[1]) = s24_cutlass.scaled_mm_dglu(%in4, %in5, 32, 16, 'sm90', %in3, %t0, %getitem3, %permute0, 'silu', 'first', False)  # cutlass
%getitem6: f32[1] = getitem(%s24_cutlass.scaled_mm_dglu0, 1)
%getitem7: bf16[64, 16] col = getitem(%s24_cutlass.scaled_mm_dglu0, 0)
%permute1: bf16[16, 64] = permute(%getitem7, [1, 0])
%reshape1: bf16[2, 8, 64] = reshape(%permute1, [2, 8, 64])
%view1: bf16[16, 64] = view(%reshape1, [-1, 64])
%randint1: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.quantise_pack1: (torch.float8_e5m2[16, 64], torch.float8_e5m2[64, 16], u8[2, 2, 1024], f32[1], f32[1], f32[0]) = s24_triton.quantise_pack(%view1, %getitem6, %randint1, torch.float8_e5m2, 'sm90', True, False)  # triton
%getitem8: torch.float8_e5m2[16, 64] = getitem(%s24_triton.quantise_pack1, 0)
%getitem9: torch.float8_e5m2[64, 16] = getitem(%s24_triton.quantise_pack1, 1)
%getitem10: u8[2, 2, 1024] = getitem(%s24_triton.quantise_pack1, 2)
%getitem11: f32[1] = getitem(%s24_triton.quantise_pack1, 3)
%getitem12: f32[1] = getitem(%s24_triton.quantise_pack1, 4)
%s24_cutlass.scaled_mm1: f32[64, 16] = s24_cutlass.scaled_mm(%getitem9, %getitem10, 64, 16, 'sm90', %getitem12, %in12, %in7, None, 'row', f32, False)  # cutlass
%split_with_sizes1: (f32[32, 16], f32[32, 16]) = split_with_sizes(%s24_cutlass.scaled_mm1, [32, 32])
%getitem13: f32[32, 16] = getitem(%split_with_sizes1, 0)
%getitem14: f32[32, 16] = getitem(%split_with_sizes1, 1)
%t1: torch.float8_e5m2[64, 16] col = t(%getitem8)
%s24_cutlass.scaled_mm2: f32[16, 16] col = s24_cutlass.scaled_mm(%in1, %in2, 16, 64, 'sm90', %in0, %t1, %getitem11, None, 'col', f32, False)  # cutlass
%t2: f32[16, 16] = t(%s24_cutlass.scaled_mm2)
%view2: f32[2, 8, 16] = view(%t2, [2, 8, 16])
return [%getitem13, %view2, %getitem14, %getitem5, None, None, None, %in8, %getitem6, None, None, None, None, None, %in10, %s24_triton.amax0, None, None]""",
    )


def test_quantise_dense_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for: gate and up read one quantised x, and each weight is quantised both ways from one read."""
    model = Gated(nn.functional.silu)
    forward, backward = lowered_for_hopper(model, monkeypatch, precision="fp8", dense_after=0)
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[2, 8, 16]
%in2: f32[32, 16]
%in3: f32[16, 32]
%_to_copy0: bf16[2, 8, 16] = _to_copy(%in1, dtype=bf16)
%reshape0: bf16[16, 16] = reshape(%_to_copy0, [-1, 16])
%s24_triton.amax0: f32[1] = s24_triton.amax(%reshape0)  # triton
%s24_triton.quantise0: (torch.float8_e4m3fn[16, 16], torch.float8_e4m3fn[16, 16], f32[1]) = s24_triton.quantise(%reshape0, %s24_triton.amax0, torch.float8_e4m3fn, 'both')  # triton
%s24_triton.amax1: f32[1] = s24_triton.amax(%in0)  # triton
%s24_triton.quantise1: (torch.float8_e4m3fn[32, 16], torch.float8_e4m3fn[16, 32], f32[1]) = s24_triton.quantise(%in0, %s24_triton.amax1, torch.float8_e4m3fn, 'both')  # triton
%getitem0: torch.float8_e4m3fn[32, 16] = getitem(%s24_triton.quantise1, 0)
%permute0: torch.float8_e4m3fn[16, 32] col = permute(%getitem0, [1, 0])
%getitem1: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 0)
%getitem2: f32[1] = getitem(%s24_triton.quantise0, 2)
%getitem3: f32[1] = getitem(%s24_triton.quantise1, 2)
%s24_cublas.scaled_dense0: bf16[16, 32] = s24_cublas.scaled_dense(%getitem1, %getitem2, %permute0, %getitem3, None, bf16, False)  # cublas
%reshape1: bf16[2, 8, 32] = reshape(%s24_cublas.scaled_dense0, [2, 8, 32])
%getitem4: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 1)
%getitem5: f32[1] = getitem(%s24_triton.quantise0, 2)
%getitem6: torch.float8_e4m3fn[16, 32] = getitem(%s24_triton.quantise1, 1)
%getitem7: f32[1] = getitem(%s24_triton.quantise1, 2)
%silu0: bf16[2, 8, 32] = silu(%reshape1)
%s24_triton.amax2: f32[1] = s24_triton.amax(%in2)  # triton
%s24_triton.quantise2: (torch.float8_e4m3fn[32, 16], torch.float8_e4m3fn[16, 32], f32[1]) = s24_triton.quantise(%in2, %s24_triton.amax2, torch.float8_e4m3fn, 'both')  # triton
%getitem8: torch.float8_e4m3fn[32, 16] = getitem(%s24_triton.quantise2, 0)
%permute1: torch.float8_e4m3fn[16, 32] col = permute(%getitem8, [1, 0])
%getitem9: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 0)
%getitem10: f32[1] = getitem(%s24_triton.quantise0, 2)
%getitem11: f32[1] = getitem(%s24_triton.quantise2, 2)
%s24_cublas.scaled_dense1: bf16[16, 32] = s24_cublas.scaled_dense(%getitem9, %getitem10, %permute1, %getitem11, None, bf16, False)  # cublas
%reshape2: bf16[2, 8, 32] = reshape(%s24_cublas.scaled_dense1, [2, 8, 32])
%getitem12: torch.float8_e4m3fn[16, 16] = getitem(%s24_triton.quantise0, 1)
%getitem13: f32[1] = getitem(%s24_triton.quantise0, 2)
%getitem14: torch.float8_e4m3fn[16, 32] = getitem(%s24_triton.quantise2, 1)
%getitem15: f32[1] = getitem(%s24_triton.quantise2, 2)
%mul0: bf16[2, 8, 32] = mul(%silu0, %reshape2)
%reshape3: bf16[16, 32] = reshape(%mul0, [-1, 32])
%s24_triton.amax3: f32[1] = s24_triton.amax(%reshape3)  # triton
%s24_triton.quantise3: (torch.float8_e4m3fn[16, 32], torch.float8_e4m3fn[32, 16], f32[1]) = s24_triton.quantise(%reshape3, %s24_triton.amax3, torch.float8_e4m3fn, 'both')  # triton
%s24_triton.amax4: f32[1] = s24_triton.amax(%in3)  # triton
%s24_triton.quantise4: (torch.float8_e4m3fn[16, 32], torch.float8_e4m3fn[32, 16], f32[1]) = s24_triton.quantise(%in3, %s24_triton.amax4, torch.float8_e4m3fn, 'both')  # triton
%getitem16: torch.float8_e4m3fn[16, 32] = getitem(%s24_triton.quantise4, 0)
%permute2: torch.float8_e4m3fn[32, 16] col = permute(%getitem16, [1, 0])
%getitem17: torch.float8_e4m3fn[16, 32] = getitem(%s24_triton.quantise3, 0)
%getitem18: f32[1] = getitem(%s24_triton.quantise3, 2)
%getitem19: f32[1] = getitem(%s24_triton.quantise4, 2)
%s24_cublas.scaled_dense2: bf16[16, 16] = s24_cublas.scaled_dense(%getitem17, %getitem18, %permute2, %getitem19, None, bf16, False)  # cublas
%reshape4: bf16[2, 8, 16] = reshape(%s24_cublas.scaled_dense2, [2, 8, 16])
%getitem20: torch.float8_e4m3fn[32, 16] = getitem(%s24_triton.quantise3, 1)
%getitem21: f32[1] = getitem(%s24_triton.quantise3, 2)
%getitem22: torch.float8_e4m3fn[32, 16] = getitem(%s24_triton.quantise4, 1)
%getitem23: f32[1] = getitem(%s24_triton.quantise4, 2)
%t0: torch.float8_e4m3fn[16, 32] col = t(%getitem22)
%t1: torch.float8_e4m3fn[16, 32] col = t(%getitem20)
%t2: torch.float8_e4m3fn[32, 16] col = t(%getitem14)
%t3: torch.float8_e4m3fn[16, 16] col = t(%getitem12)
%t4: torch.float8_e4m3fn[32, 16] col = t(%getitem6)
%t5: torch.float8_e4m3fn[16, 16] col = t(%getitem4)
return [%reshape4, %reshape1, %getitem5, %getitem7, %reshape2, %getitem13, %getitem15, %getitem21, %getitem23, %t0, %t1, %t2, %t3, %t4, %t5]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: bf16[2, 8, 32]
%in1: f32[1]
%in2: f32[1]
%in3: bf16[2, 8, 32]
%in4: f32[1]
%in5: f32[1]
%in6: f32[1]
%in7: f32[1]
%in8: torch.float8_e4m3fn[16, 32] col
%in9: torch.float8_e4m3fn[16, 32] col
%in10: torch.float8_e4m3fn[32, 16] col
%in11: torch.float8_e4m3fn[16, 16] col
%in12: torch.float8_e4m3fn[32, 16] col
%in13: torch.float8_e4m3fn[16, 16] col
%in14: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in14, [-1, 16])
%s24_triton.amax0: f32[1] = s24_triton.amax(%view0)  # triton
%s24_triton.quantise0: (torch.float8_e5m2[16, 16], torch.float8_e5m2[16, 16], f32[1]) = s24_triton.quantise(%view0, %s24_triton.amax0, torch.float8_e5m2, 'both')  # triton
%getitem0: torch.float8_e5m2[16, 16] = getitem(%s24_triton.quantise0, 0)
%getitem1: torch.float8_e5m2[16, 16] = getitem(%s24_triton.quantise0, 1)
%getitem2: f32[1] = getitem(%s24_triton.quantise0, 2)
%s24_cublas.scaled_dense0: bf16[16, 32] = s24_cublas.scaled_dense(%getitem0, %getitem2, %in8, %in7, None, bf16, False)  # cublas
%view1: bf16[2, 8, 32] = view(%s24_cublas.scaled_dense0, [2, 8, 32])
%s24_cublas.scaled_dense1: f32[16, 32] = s24_cublas.scaled_dense(%getitem1, %getitem2, %in9, %in6, None, f32, False)  # cublas
%silu0: bf16[2, 8, 32] = silu(%in0)
%mul0: bf16[2, 8, 32] = mul(%view1, %silu0)
%mul1: bf16[2, 8, 32] = mul(%view1, %in3)
%view2: bf16[16, 32] = view(%mul0, [-1, 32])
%s24_triton.amax1: f32[1] = s24_triton.amax(%view2)  # triton
%s24_triton.quantise1: (torch.float8_e5m2[16, 32], torch.float8_e5m2[32, 16], f32[1]) = s24_triton.quantise(%view2, %s24_triton.amax1, torch.float8_e5m2, 'both')  # triton
%getitem3: torch.float8_e5m2[16, 32] = getitem(%s24_triton.quantise1, 0)
%getitem4: torch.float8_e5m2[32, 16] = getitem(%s24_triton.quantise1, 1)
%getitem5: f32[1] = getitem(%s24_triton.quantise1, 2)
%s24_cublas.scaled_dense2: bf16[16, 16] = s24_cublas.scaled_dense(%getitem3, %getitem5, %in10, %in5, None, bf16, False)  # cublas
%view3: bf16[2, 8, 16] = view(%s24_cublas.scaled_dense2, [2, 8, 16])
%s24_cublas.scaled_dense3: f32[32, 16] = s24_cublas.scaled_dense(%getitem4, %getitem5, %in11, %in4, None, f32, False)  # cublas
%_to_copy0: f32[2, 8, 16] = _to_copy(%view3, dtype=f32, layout=torch.strided, device=device(type='cpu'))
%silu_backward0: bf16[2, 8, 32] = silu_backward(%mul1, %in0)
%view4: bf16[16, 32] = view(%silu_backward0, [-1, 32])
%s24_triton.amax2: f32[1] = s24_triton.amax(%view4)  # triton
%s24_triton.quantise2: (torch.float8_e5m2[16, 32], torch.float8_e5m2[32, 16], f32[1]) = s24_triton.quantise(%view4, %s24_triton.amax2, torch.float8_e5m2, 'both')  # triton
%getitem6: torch.float8_e5m2[16, 32] = getitem(%s24_triton.quantise2, 0)
%getitem7: torch.float8_e5m2[32, 16] = getitem(%s24_triton.quantise2, 1)
%getitem8: f32[1] = getitem(%s24_triton.quantise2, 2)
%s24_cublas.scaled_dense4: bf16[16, 16] = s24_cublas.scaled_dense(%getitem6, %getitem8, %in12, %in2, None, bf16, False)  # cublas
%view5: bf16[2, 8, 16] = view(%s24_cublas.scaled_dense4, [2, 8, 16])
%s24_cublas.scaled_dense5: f32[32, 16] = s24_cublas.scaled_dense(%getitem7, %getitem8, %in13, %in1, None, f32, False)  # cublas
%_to_copy1: f32[2, 8, 16] = _to_copy(%view5, dtype=f32, layout=torch.strided, device=device(type='cpu'))
%add0: f32[2, 8, 16] = add(%_to_copy0, %_to_copy1)
return [%s24_cublas.scaled_dense5, %add0, %s24_cublas.scaled_dense3, %s24_cublas.scaled_dense1]""",
    )
