"""Casts of a GEMM's result: into its epilogue where only the caller reads them. Look for: f32 behind `s24.mm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from s24compile.kernels.format import FORMATS
from s24compile.kernels.target import Target
from s24compile.lowering.casts import absorb_casts
from s24compile.lowering.printing import print_graph

s24 = torch.ops.s24
HOPPER = Target.parse("sm_90")
T, D, F = 24, 16, 32


def dx(dz: Tensor) -> Tensor:
    """[2, T/2, D] in bf16, from an empty weight: only shapes matter here."""
    values, metadata = FORMATS["sm90"].empty(D, F, dz.dtype, dz.device)
    return s24.mm(values, metadata, D, F, "sm90", dz.t(), None, "col", dz.dtype).t().view(2, T // 2, D)


def traced(function: Callable[..., Any]) -> fx.Graph:
    return make_fx(function, tracing_mode="fake")(torch.randn(T, F, dtype=torch.bfloat16)).graph


def test_let_the_gemm_write_what_the_caller_gets() -> None:
    graph = traced(lambda dz: dx(dz).float())
    assert absorb_casts(graph, HOPPER) == 1
    graph.lint()
    assert_expected_inline(
        print_graph(graph),
        """\
%in0: bf16[24, 32]
%empty0: bf16[16, 16] = empty([16, 16], dtype=bf16, device=device(type='cpu'), pin_memory=False)
%empty1: i16[1, 1, 256] = empty([1, 1, 256], dtype=i16, device=device(type='cpu'), pin_memory=False)
%t0: bf16[32, 24] col = t(%in0)
%s24.mm0: f32[16, 24] col = s24.mm(%empty0, %empty1, 16, 32, 'sm90', %t0, None, 'col', f32)
%t1: f32[24, 16] = t(%s24.mm0)
%view0: f32[2, 12, 16] = view(%t1, [2, 12, 16])
return %view0""",
    )


def test_look_through_views_behind_the_cast() -> None:
    assert absorb_casts(traced(lambda dz: dx(dz).float().view(-1, D)), HOPPER) == 1


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda dz: dx(dz).float() * 2, id="a pointwise kernel takes the cast for free"),
        pytest.param(lambda dz: dx(dz).relu().float(), id="something stands between"),
        pytest.param(lambda dz: [g := dx(dz).float(), g * 2], id="one reader is no output"),
    ],
)
def test_leave_casts_that_cost_nothing(function: Callable[[Tensor], Any]) -> None:
    graph = traced(function)
    before = print_graph(graph)
    assert absorb_casts(graph, HOPPER) == 0
    assert print_graph(graph) == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_leave_dtypes_that_no_kernel_writes(dtype: torch.dtype) -> None:
    assert absorb_casts(traced(lambda dz: dx(dz).to(dtype)), HOPPER) == 0


def test_leave_targets_without_a_kernel() -> None:
    assert absorb_casts(traced(lambda dz: dx(dz).float()), Target()) == 0


def test_leave_a_result_that_is_read_as_it_is_too() -> None:
    def shared(dz: Tensor) -> tuple[Tensor, Tensor]:
        narrow = dx(dz)
        return narrow.float(), narrow

    assert absorb_casts(traced(shared), HOPPER) == 0
