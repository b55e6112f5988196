"""Rewritten graphs in print. Numbers first; then look at: one s24 op per linear, packed inputs last, dtypes and shapes.

EXPECTTEST_ACCEPT=1 rewrites the expected text.
"""

# ruff: noqa: E501
from __future__ import annotations

import torch
import torch.nn.functional as F
from expecttest import TestCase
from torch import nn

from tests import ffns
from tests.ffn_spellings import gelu_new
from tests.passes.harness import Capture, check_masked, input_of
from tests.passes.stacks import Stack, checkpointed


def rewritten(model: nn.Module, reference: nn.Module | None = None) -> str:
    """The graph after the passes, checked against masked dense arithmetic."""
    torch.manual_seed(0)
    capture = Capture()
    check_masked(model, capture, input_of(), reference=reference)
    return capture.graph()


class TestGoldens(TestCase):
    """One graph per family and spelling that matters."""

    maxDiff = None

    def test_gelu_mlp(self):
        self.assertExpectedInline(
            rewritten(ffns.Plain(F.gelu)),
            """\
graph:
    input fc1_weight: f32[64, 32]
    input fc1_bias: f32[64]
    input x: f32[2, 8, 32]
    input fc2_weight: f32[32, 64]
    input fc2_bias: f32[32]
    input s24_0_values: f32[64, 16]
    input s24_0_metadata: i16[1, 1, 256]
    input s24_0_values_t: f32[32, 32]
    input s24_0_metadata_t: i16[1, 1, 256]
    input s24_1_values: f32[32, 32]
    input s24_1_metadata: i16[1, 1, 256]
    input s24_1_values_t: f32[64, 16]
    input s24_1_metadata_t: i16[1, 1, 256]
    s24_linear: f32[2, 8, 64] = s24.linear(x, [fc1_weight], s24_0_values, s24_0_metadata, s24_0_values_t, s24_0_metadata_t, fc1_bias, 'sm90', 'out_in', 'sparse', 'dense')
    s24_act: f32[2, 8, 64] = s24.act(s24_linear, 'gelu')
    s24_linear_1: f32[2, 8, 32] = s24.linear(s24_act, [fc2_weight], s24_1_values, s24_1_metadata, s24_1_values_t, s24_1_metadata_t, fc2_bias, 'sm90', 'out_in', 'sparse', 'dense')
    return [s24_linear_1]""",
        )

    def test_geglu(self):
        model = ffns.Fused(lambda z: z.chunk(2, -1), lambda a, b: a * F.gelu(b), bias=False)
        self.assertExpectedInline(
            rewritten(model),
            """\
graph:
    input wi_weight: f32[128, 32]
    input x: f32[2, 8, 32]
    input wo_weight: f32[32, 64]
    input s24_0_values: f32[128, 16]
    input s24_0_metadata: i16[1, 2, 256]
    input s24_0_values_t: f32[32, 64]
    input s24_0_metadata_t: i16[2, 1, 256]
    input s24_1_values: f32[32, 32]
    input s24_1_metadata: i16[1, 1, 256]
    input s24_1_values_t: f32[64, 16]
    input s24_1_metadata_t: i16[1, 1, 256]
    s24_linear: f32[2, 8, 128] = s24.linear(x, [wi_weight], s24_0_values, s24_0_metadata, s24_0_values_t, s24_0_metadata_t, None, 'sm90', 'out_in', 'sparse', 'dense')
    s24_glu: f32[2, 8, 64] = s24.glu(s24_linear, 'gelu', 'second')
    s24_linear_1: f32[2, 8, 32] = s24.linear(s24_glu, [wo_weight], s24_1_values, s24_1_metadata, s24_1_values_t, s24_1_metadata_t, None, 'sm90', 'out_in', 'sparse', 'dense')
    return [s24_linear_1]""",
        )

    def test_swiglu(self):
        self.assertExpectedInline(
            rewritten(ffns.Gated(F.silu)),
            """\
graph:
    input gate_proj_weight: f32[64, 32]
    input x: f32[2, 8, 32]
    input up_proj_weight: f32[64, 32]
    input down_proj_weight: f32[32, 64]
    input s24_0_values: f32[128, 16]
    input s24_0_metadata: i16[1, 2, 256]
    input s24_0_values_t: f32[32, 64]
    input s24_0_metadata_t: i16[2, 1, 256]
    input s24_1_values: f32[32, 32]
    input s24_1_metadata: i16[1, 1, 256]
    input s24_1_values_t: f32[64, 16]
    input s24_1_metadata_t: i16[1, 1, 256]
    s24_linear: f32[2, 8, 128] = s24.linear(x, [gate_proj_weight, up_proj_weight], s24_0_values, s24_0_metadata, s24_0_values_t, s24_0_metadata_t, None, 'sm90', 'out_in', 'sparse', 'dense')
    s24_glu: f32[2, 8, 64] = s24.glu(s24_linear, 'silu', 'first')
    s24_linear_1: f32[2, 8, 32] = s24.linear(s24_glu, [down_proj_weight], s24_1_values, s24_1_metadata, s24_1_values_t, s24_1_metadata_t, None, 'sm90', 'out_in', 'sparse', 'dense')
    return [s24_linear_1]""",
        )

    def test_conv1d(self):
        self.assertExpectedInline(
            rewritten(ffns.Plain(gelu_new, ffns.Conv1D)),
            """\
graph:
    input x: f32[2, 8, 32]
    input fc1_bias: f32[64]
    input fc1_weight: f32[32, 64]
    input fc2_bias: f32[32]
    input fc2_weight: f32[64, 32]
    input s24_0_values: f32[64, 16]
    input s24_0_metadata: i16[1, 1, 256]
    input s24_0_values_t: f32[32, 32]
    input s24_0_metadata_t: i16[1, 1, 256]
    input s24_1_values: f32[32, 32]
    input s24_1_metadata: i16[1, 1, 256]
    input s24_1_values_t: f32[64, 16]
    input s24_1_metadata_t: i16[1, 1, 256]
    s24_linear: f32[2, 8, 64] = s24.linear(x, [fc1_weight], s24_0_values, s24_0_metadata, s24_0_values_t, s24_0_metadata_t, fc1_bias, 'sm90', 'in_out', 'sparse', 'dense')
    s24_act: f32[2, 8, 64] = s24.act(s24_linear, 'gelu_tanh')
    s24_linear_1: f32[2, 8, 32] = s24.linear(s24_act, [fc2_weight], s24_1_values, s24_1_metadata, s24_1_values_t, s24_1_metadata_t, fc2_bias, 'sm90', 'in_out', 'sparse', 'dense')
    return [s24_linear_1]""",
        )

    def test_checkpointed(self):
        model = Stack(ffns.Plain(F.gelu, lambda i, o: nn.Linear(i, o, bias=False)), wrap=checkpointed)
        self.assertExpectedInline(
            rewritten(model, Stack(*model.Blocks)),
            """\
graph:
    input l_x_: f32[2, 8, 32]
    input blocks_0_fc1_weight: f32[64, 32]
    input blocks_0_fc2_weight: f32[32, 64]
    input s24_0_values: f32[64, 16]
    input s24_0_metadata: i16[1, 1, 256]
    input s24_0_values_t: f32[32, 32]
    input s24_0_metadata_t: i16[1, 1, 256]
    input s24_1_values: f32[32, 32]
    input s24_1_metadata: i16[1, 1, 256]
    input s24_1_values_t: f32[64, 16]
    input s24_1_metadata_t: i16[1, 1, 256]
    tag_activation_checkpoint: tuple = tag_activation_checkpoint(wrap_body_0, l_x_, blocks_0_fc1_weight, blocks_0_fc2_weight, s24_0_values, s24_0_metadata, s24_0_values_t, s24_0_metadata_t, s24_1_values, s24_1_metadata, s24_1_values_t, s24_1_metadata_t, use_reentrant=False)
    getitem: f32[2, 8, 32] = getitem(tag_activation_checkpoint, 0)
    x: f32[2, 8, 32] = add(getitem, l_x_)
    return [x]
wrap_body_0:
    input x: f32[2, 8, 32]
    input blocks_0_fc1_weight: f32[64, 32]
    input blocks_0_fc2_weight: f32[32, 64]
    input s24_0_values: f32[64, 16]
    input s24_0_metadata: i16[1, 1, 256]
    input s24_0_values_t: f32[32, 32]
    input s24_0_metadata_t: i16[1, 1, 256]
    input s24_1_values: f32[32, 32]
    input s24_1_metadata: i16[1, 1, 256]
    input s24_1_values_t: f32[64, 16]
    input s24_1_metadata_t: i16[1, 1, 256]
    s24_linear: f32[2, 8, 64] = s24.linear(x, [blocks_0_fc1_weight], s24_0_values, s24_0_metadata, s24_0_values_t, s24_0_metadata_t, None, 'sm90', 'out_in', 'sparse', 'dense')
    s24_act: f32[2, 8, 64] = s24.act(s24_linear, 'gelu')
    s24_linear_1: f32[2, 8, 32] = s24.linear(s24_act, [blocks_0_fc2_weight], s24_1_values, s24_1_metadata, s24_1_values_t, s24_1_metadata_t, None, 'sm90', 'out_in', 'sparse', 'dense')
    return [s24_linear_1]""",
        )
