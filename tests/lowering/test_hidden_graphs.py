"""Golden graphs of layers whose hidden state is 2:4, for a faked sm_90 target.

Look for: the up projection a plain product, one pass that packs its result, `mm` in both directions with the tokens as
rows; x and the packed state alone kept for the backward; there one dense product, one pass that reads its result, and
2:4 products, weight gradients straight in fp32. The state's counts leave the forward as its last result.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from expecttest import assert_expected_inline
from torch import Tensor, nn

from tests.lowering.test_hopper_graphs import lowered_for_hopper

SPARSE = {"recipe": "activation", "dense_until": 0}


class SquaredRelu(nn.Module):
    """nanochat's, with biases where asked for."""

    def __init__(self, bias: bool = False, width: int = 16, hidden: int = 32) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, hidden, bias), nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(nn.functional.relu(self.c_fc(x)).square())


def test_pack_the_hidden_state_once_in_each_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = lowered_for_hopper(SquaredRelu(), monkeypatch, **SPARSE)
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[2, 8, 16]
%in2: f32[16, 32]
%_to_copy0: bf16[2, 8, 16] = _to_copy(%in1, dtype=bf16)
%detach0: f32[32, 16] = detach(%in0)
%_to_copy1: bf16[32, 16] = _to_copy(%detach0, dtype=bf16)
%detach1: f32[16, 32] = detach(%in2)
%_to_copy2: bf16[16, 32] = _to_copy(%detach1, dtype=bf16)
%reshape0: bf16[16, 16] = reshape(%_to_copy0, [-1, 16])
%permute0: bf16[16, 32] col = permute(%_to_copy1, [1, 0])
%mm0: bf16[16, 32] = mm(%reshape0, %permute0)
%s24_triton.activation_pack0: (bf16[16, 16], i16[1, 1, 256], f32[1, 1, 5]) = s24_triton.activation_pack(%mm0, None, 'relu2', 1.0, 'sm90')  # triton
%getitem0: bf16[16, 16] = getitem(%s24_triton.activation_pack0, 0)
%getitem1: i16[1, 1, 256] = getitem(%s24_triton.activation_pack0, 1)
%getitem2: f32[1, 1, 5] = getitem(%s24_triton.activation_pack0, 2)
%permute1: bf16[32, 16] col = permute(%_to_copy2, [1, 0])
%s24_cutlass.mm0: bf16[16, 16] = s24_cutlass.mm(%getitem0, %getitem1, 16, 32, 'sm90', %permute1, None, 'row', bf16)  # cutlass
%reshape1: bf16[2, 8, 16] = reshape(%s24_cutlass.mm0, [2, 8, 16])
%view0: bf16[16, 16] = view(%_to_copy0, [-1, 16])
return [%reshape1, %getitem2, %_to_copy1, %_to_copy2, %getitem0, %getitem1, %view0]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: bf16[32, 16]
%in1: bf16[16, 32]
%in2: bf16[16, 16]
%in3: i16[1, 1, 256]
%in4: bf16[16, 16]
%in5: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in5, [-1, 16])
%mm0: bf16[16, 32] = mm(%view0, %in1)
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.activation_backward_pack0: (bf16[16, 16], bf16[32, 8], i16[2, 2, 256], bf16[32, 8], i16[2, 2, 256], f32[0]) = s24_triton.activation_backward_pack(%mm0, %in2, %in3, 16, 32, 'sm90', 'relu2', 1.0, %randint0, True, True, False)  # triton
%getitem0: bf16[16, 16] = getitem(%s24_triton.activation_backward_pack0, 0)
%getitem1: bf16[32, 8] = getitem(%s24_triton.activation_backward_pack0, 1)
%getitem2: i16[2, 2, 256] = getitem(%s24_triton.activation_backward_pack0, 2)
%getitem3: bf16[32, 8] = getitem(%s24_triton.activation_backward_pack0, 3)
%getitem4: i16[2, 2, 256] = getitem(%s24_triton.activation_backward_pack0, 4)
%s24_cutlass.mm0: f32[32, 16] = s24_cutlass.mm(%getitem1, %getitem2, 32, 16, 'sm90', %in4, None, 'row', f32)  # cutlass
%s24_cutlass.mm1: f32[16, 16] = s24_cutlass.mm(%getitem0, %in3, 16, 32, 'sm90', %in0, None, 'row', f32)  # cutlass
%s24_cutlass.mm2: f32[32, 16] col = s24_cutlass.mm(%getitem3, %getitem4, 32, 16, 'sm90', %view0, None, 'col', f32)  # cutlass
%t0: f32[16, 32] = t(%s24_cutlass.mm2)
%view1: f32[2, 8, 16] = view(%s24_cutlass.mm1, [2, 8, 16])
return [%s24_cutlass.mm0, %view1, %t0]""",
    )


def test_sum_the_bias_gradient_in_the_pass_of_the_hidden_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SquaredRelu(bias=True)
    forward, backward = lowered_for_hopper(model, monkeypatch, **SPARSE, gradient="dense")
    assert_expected_inline(
        forward,
        """\
%in0: f32[32, 16]
%in1: f32[32]
%in2: f32[2, 8, 16]
%in3: f32[16, 32]
%in4: f32[16]
%_to_copy0: bf16[2, 8, 16] = _to_copy(%in2, dtype=bf16)
%detach0: f32[32, 16] = detach(%in0)
%_to_copy1: bf16[32, 16] = _to_copy(%detach0, dtype=bf16)
%detach1: f32[16, 32] = detach(%in3)
%_to_copy2: bf16[16, 32] = _to_copy(%detach1, dtype=bf16)
%reshape0: bf16[16, 16] = reshape(%_to_copy0, [-1, 16])
%permute0: bf16[16, 32] col = permute(%_to_copy1, [1, 0])
%convert_element_type0: bf16[32] = convert_element_type(%in1, bf16)
%addmm0: bf16[16, 32] = addmm(%convert_element_type0, %reshape0, %permute0)
%s24_triton.activation_pack0: (bf16[16, 16], i16[1, 1, 256], f32[1, 1, 5]) = s24_triton.activation_pack(%addmm0, None, 'relu2', 1.0, 'sm90')  # triton
%getitem0: bf16[16, 16] = getitem(%s24_triton.activation_pack0, 0)
%getitem1: i16[1, 1, 256] = getitem(%s24_triton.activation_pack0, 1)
%getitem2: f32[1, 1, 5] = getitem(%s24_triton.activation_pack0, 2)
%permute1: bf16[32, 16] col = permute(%_to_copy2, [1, 0])
%s24_cutlass.mm0: bf16[16, 16] = s24_cutlass.mm(%getitem0, %getitem1, 16, 32, 'sm90', %permute1, None, 'row', bf16)  # cutlass
%convert_element_type1: bf16[16] = convert_element_type(%in4, bf16)
%add0: bf16[16, 16] = add(%s24_cutlass.mm0, %convert_element_type1)
%reshape1: bf16[2, 8, 16] = reshape(%add0, [2, 8, 16])
%view0: bf16[16, 16] = view(%_to_copy0, [-1, 16])
return [%reshape1, %getitem2, %_to_copy1, %_to_copy2, %getitem0, %getitem1, %view0]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: bf16[32, 16]
%in1: bf16[16, 32]
%in2: bf16[16, 16]
%in3: i16[1, 1, 256]
%in4: bf16[16, 16]
%in5: bf16[2, 8, 16]
%view0: bf16[16, 16] = view(%in5, [-1, 16])
%mm0: bf16[16, 32] = mm(%view0, %in1)
%randint0: i64[1] = randint(0, 4611686018427387904, [1], device=device(type='cpu'), pin_memory=False)
%s24_triton.activation_backward_pack0: (bf16[16, 16], bf16[0], i16[0], bf16[0], i16[0], f32[32]) = s24_triton.activation_backward_pack(%mm0, %in2, %in3, 16, 32, 'sm90', 'relu2', 1.0, %randint0, False, False, True)  # triton
%getitem0: bf16[16, 16] = getitem(%s24_triton.activation_backward_pack0, 0)
%getitem1: f32[32] = getitem(%s24_triton.activation_backward_pack0, 5)
%s24.unpack0: bf16[16, 32] = s24.unpack(%getitem0, %in3, 16, 32, 'sm90')  # triton
%t0: bf16[32, 16] col = t(%s24.unpack0)
%mm1: bf16[32, 16] = mm(%t0, %in4)
%_to_copy0: f32[32, 16] = _to_copy(%mm1, dtype=f32)
%s24_cutlass.mm0: f32[16, 16] = s24_cutlass.mm(%getitem0, %in3, 16, 32, 'sm90', %in0, None, 'row', f32)  # cutlass
%s24.unpack1: bf16[16, 32] = s24.unpack(%in2, %in3, 16, 32, 'sm90')  # triton
%t1: bf16[16, 16] col = t(%view0)
%mm2: bf16[16, 32] = mm(%t1, %s24.unpack1)
%_to_copy1: f32[16, 32] = _to_copy(%mm2, dtype=f32)
%sum0: f32[16] = sum(%view0, [0], dtype=f32)
%view1: f32[2, 8, 16] = view(%s24_cutlass.mm0, [2, 8, 16])
return [%_to_copy0, %getitem1, %view1, %_to_copy1, %sum0]""",
    )


def test_train_as_lowered_for_hopper_on_this_cpu() -> None:
    pytest.importorskip("triton", reason="Triton's interpreter runs the kernels; it exists on Linux only")
    script = Path(__file__).with_name("hidden_on_cpu.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "checked 3 steps" in done.stdout
