"""Residuals into the GEMM's C where only the caller reads the sum. Look for: `mm_add`, and no `add`."""

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
from s24compile.lowering.printing import print_graph
from s24compile.lowering.residual import absorb_residuals

s24 = torch.ops.s24
HOPPER = Target.parse("sm_90")
T, D, F = 24, 16, 32


def product(h: Tensor, bias: Tensor | None = None) -> Tensor:
    """y [2, T/2, D] in bf16, from an empty weight: only shapes matter here."""
    values, metadata = FORMATS["sm90"].empty(D, F, h.dtype, h.device)
    return s24.mm(values, metadata, D, F, "sm90", h.t(), bias, "col", h.dtype).t().view(2, T // 2, D)


def traced(function: Callable[..., Any], dtype: torch.dtype = torch.float32) -> fx.Graph:
    x, h = torch.randn(2, T // 2, D, dtype=dtype), torch.randn(T, F, dtype=torch.bfloat16)
    return make_fx(function, tracing_mode="fake")(x, h).graph


def test_add_in_the_gemm_what_the_caller_gets() -> None:
    graph = traced(lambda x, h: x + product(h))
    assert absorb_residuals(graph, HOPPER) == 1
    graph.lint()
    assert_expected_inline(
        print_graph(graph),
        """\
%in0: f32[2, 12, 16]
%in1: bf16[24, 32]
%empty0: bf16[16, 16] = empty([16, 16], dtype=bf16, device=device(type='cpu'), pin_memory=False)
%empty1: i16[1, 1, 256] = empty([1, 1, 256], dtype=i16, device=device(type='cpu'), pin_memory=False)
%t0: bf16[32, 24] col = t(%in1)
%reshape0: f32[24, 16] = reshape(%in0, [-1, 16])
%permute0: f32[16, 24] col = permute(%reshape0, [1, 0])
%s24.mm_add0: f32[16, 24] col = s24.mm_add(%empty0, %empty1, 16, 32, 'sm90', %t0, %permute0)
%permute1: f32[24, 16] = permute(%s24.mm_add0, [1, 0])
%reshape1: f32[2, 12, 16] = reshape(%permute1, [2, 12, 16])
return %reshape1""",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, h: product(h) + x, id="the other way round"),
        pytest.param(lambda x, h: x + product(h).to(x.dtype), id="a cast in between"),
        pytest.param(lambda x, h: (x + product(h)).view(-1, D), id="views behind the sum"),
    ],
)
def test_find_every_spelling(function: Callable[..., Any], dtype: torch.dtype) -> None:
    assert absorb_residuals(traced(function, dtype), HOPPER) == 1


def norm(x: Tensor) -> Tensor:
    return x * x.square().mean(-1, keepdim=True).rsqrt()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x, h: norm(x + product(h)), id="a norm reads the sum"),
        pytest.param(lambda x, h: [y := product(h), x + y], id="somebody else reads y"),
        pytest.param(lambda x, h: torch.add(x, product(h), alpha=2), id="a scaled sum"),
        pytest.param(lambda x, h: x[:1] + product(h), id="a broadcast"),
        pytest.param(lambda x, h: x + product(h, h.new_zeros(D)), id="a bias"),
        pytest.param(lambda x, h: x.transpose(0, 1).contiguous().transpose(0, 1) + product(h), id="other strides"),
        pytest.param(lambda x, h: x + product(h).relu(), id="something stands between"),
    ],
)
def test_leave_other_sums(function: Callable[..., Any]) -> None:
    graph = traced(function)
    before = print_graph(graph)
    assert absorb_residuals(graph, HOPPER) == 0
    assert print_graph(graph) == before


def test_leave_targets_without_the_kernel() -> None:
    assert absorb_residuals(traced(lambda x, h: x + product(h)), Target()) == 0


def test_add_with_symbolic_token_counts() -> None:
    def function(h: Tensor) -> Tensor:
        values, metadata = FORMATS["sm90"].empty(D, F, h.dtype, h.device)
        x = h.float()[:, :D].contiguous()
        return x + s24.mm(values, metadata, D, F, "sm90", h.t(), None, "col", h.dtype).t()

    graph = make_fx(function, tracing_mode="symbolic")(torch.randn(T, F, dtype=torch.bfloat16)).graph
    assert absorb_residuals(graph, HOPPER) == 1
