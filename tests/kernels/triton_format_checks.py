"""Triton's kernels write every format as the reference does, to the bit (test_triton.py starts this).

Legend: F rows of one half of a gated weight [2F, k]; T tokens.
"""

import functools
import itertools

import pytest
import torch

from s24compile.kernels import ops, providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.pack import triton_many
from s24compile.kernels.stacks import Packing, Stacks
from tests.kernels.triton_comparison import agree, both, weight_arguments

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [(64, 64), (32, 96), (20, 44), (136, 72), (4, 200), (196, 4), (0, 8), (8, 0)]
"""[m, k] beside multiples of 32 and 64 rows, and of 32 and 64 columns."""


def halves(half, parts):
    return (2 * half // parts,) * parts


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("select", ["transposable", "magnitude", "soft_threshold"])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("half", [8, 24, 64, 200])
def test_gate_and_up_are_interleaved(half, parts, select, search, layout, device):
    dtype = FP32 if layout == "out_in" else BF16
    rows = halves(half, parts)
    found, expected = both(
        "pack_weight_", lambda: weight_arguments(rows, 72, select, search, layout, dtype, device, "sm90_gated")
    )
    agree(found, expected, exact=True)
    if select != "soft_threshold":
        weights, patterns, (values, metadata, *_) = found[:parts], found[parts : 2 * parts], found[2 * parts :]
        w = torch.cat([x if layout == "out_in" else x.t() for x in weights])
        kind = "transposable" if select == "transposable" else "rows"
        mask = torch.cat([masks.expand_patterns(p, kind) for p in patterns])
        dense = ops.unpack(values, metadata, 2 * half, 72, "sm90_gated")
        assert torch.equal(dense, torch.where(mask, w, 0.0).to(BF16))
        whole = values.as_strided((2 * half, values.stride(0)), (values.stride(0), 1))
        assert not whole[:, 36:].any(), "what pads a row to 16 bytes stays 0"


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("format", ["sm90_gated", "sm80"])
def test_many_operands_of_one_format_are_packed_together(format, layout, search, device):
    operands = [halves(64, 2), halves(24, 1), halves(200, 1), halves(8, 2)]

    def make():
        singles = [
            weight_arguments(rows, 72, "transposable", search, layout, FP32, device, format) for rows in operands
        ]
        weights, patterns, *buffers = ([single[i] for single in singles] for i in range(6))
        counts = [len(rows) for rows in operands]
        weights, patterns = (list(itertools.chain(*lists)) for lists in (weights, patterns))
        return weights, counts, patterns, *buffers, "transposable", search, format, layout

    agree(*both("pack_weights_", make), exact=True)


@pytest.mark.parametrize("format", ["sm90_gated", "sm90", "sm80"])
def test_gate_and_up_of_whole_atoms_share_one_launch(format, device):
    weights, patterns, values, metadata, values_t, metadata_t, *_ = weight_arguments(
        (64, 64), 72, "transposable", True, "out_in", FP32, device, format
    )
    stacks = Stacks(weights, [2], patterns, [values], [metadata], [values_t], [metadata_t])
    found = triton_many._work_out(stacks, Packing("transposable", True, format, "out_in"))
    assert found.alone == ()
    assert len(found.launches) == 1


def test_forward_alone_needs_no_copy_of_odd_halves(device, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("halves were joined")

    def packed(provider):
        weights, patterns, values, metadata, _, _, *rest = weight_arguments(
            (40, 40), 72, "transposable", True, "out_in", FP32, device, "sm90_gated"
        )
        with providers.only(provider):
            ops.pack_weight_(weights, patterns, values, metadata, None, None, *rest)
        return [*patterns, values, metadata]

    expected = packed("reference")
    monkeypatch.setattr(torch, "cat", refuse)
    agree(packed("triton"), expected, exact=True)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("format", "shape"), [("sm80", s) for s in SHAPES] + [("sm90_gated", (80, 44))], ids=str)
def test_packing_by_a_mask(format, shape, turned, device):
    def make():
        torch.manual_seed(5)
        w = torch.randn(shape, device=device)
        w = w.t().contiguous().t() if turned else w
        return w, masks.transposable_mask(w), FP16, format

    agree(*both("pack", make), exact=True)
    agree(*both("pack_both", make), exact=True)


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
@pytest.mark.parametrize("select", ["transposable", "magnitude", "soft_threshold"])
@pytest.mark.parametrize("rows", [(128, 64), (64, 36), (32, 32), (12, 20)], ids=str)
def test_sm80_operands_are_stacked(rows, select, layout, device):
    dtype = FP32 if layout == "out_in" else BF16
    for search in (True, False):
        arguments = functools.partial(weight_arguments, rows, 72, select, search, layout, dtype, device, "sm80")
        agree(*both("pack_weight_", arguments), exact=True)


@pytest.mark.parametrize("column_major", [False, True])
@pytest.mark.parametrize("shape", [(128, 128), (130, 72), (3, 5), (33, 200), (61, 36), (0, 8)], ids=str)
def test_sm80_estimates_take_any_layout_and_token_count(shape, column_major, device):
    def make():
        torch.manual_seed(1)
        g = torch.randn(shape, device=device).to(BF16)
        g = g.t().contiguous().t() if column_major else g
        return g, torch.tensor([2**40 + 17], device=device), BF16, "sm80"

    agree(*both("mvue_pack", make), exact=True)
    (*found, sums), (*expected, total) = both("mvue_pack_sum", make)
    agree(found, expected, exact=True)
    agree([sums], [total], exact=False)


def test_what_no_kernel_writes_is_refused_in_a_sentence(device):
    g = torch.randn(64, 32, device=device)
    choice = providers.find("mvue_pack", "triton")
    assert "plain rows" in choice.supports(g, torch.tensor([1], device=device), BF16, "sm90_gated")
    w = torch.randn(24, 32, device=device)
    assert "24 rows" in providers.find("pack", "triton").supports(w, w > 0, BF16, "sm90_gated")
    assert FORMATS["sm90_gated"].transposed == "sm90"
