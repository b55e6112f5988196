"""Layouts: what is turned, what is pinned, and the column-major GEGLU of the paper as one outcome.

Look for: "row" or "col" in each `s24.mm`, and no clone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from expecttest import assert_expected_inline
from torch import Tensor, fx, nn
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.fx.experimental.proxy_tensor import make_fx

from s24compile.kernels.format import FORMATS
from s24compile.kernels.target import Target
from s24compile.lowering import layout, layout_plan
from s24compile.lowering.layout import choose_layouts
from s24compile.lowering.layout_plan import RESULT, Pace
from s24compile.lowering.printing import print_graph
from tests.graphs import captured_lowerings
from tests.lowering.test_graphs import FusedGated
from tests.masked import gradients, live_masks, masked_call

s24 = torch.ops.s24
CPU = Target()
T, D, F = 24, 16, 32
COLUMNS_ARE_DEAR = {("reference", op, RESULT): Pace(col=150) for op in ("mm", "mm_act", "mm_dact")}
"""A machine whose GEMMs write rows faster: a toy."""


def gemm(x: Tensor, layout: str, rows: int = F) -> Tensor:
    """W [rows, D] @ x^T, of an empty W: only shapes matter here."""
    values, metadata = FORMATS["sm90"].empty(rows, x.shape[1], x.dtype, x.device)
    return s24.mm(values, metadata, rows, x.shape[1], "sm90", x.t(), None, layout, x.dtype)


def traced(function: Callable[..., Any], *args: Any, mode: str = "fake") -> fx.Graph:
    return make_fx(function, tracing_mode=mode)(*args).graph


def layouts(graph: fx.Graph) -> list[Any]:
    return [n.args[layout_plan.OUT_LAYOUT[n.target._opname]] for group in layout._groups(graph) for n in group]


def weight_gradient(dz: Tensor, x: Tensor, seed: Tensor, parts: list[int]) -> list[Tensor]:
    """dW of weights stored [in, out], by a GEMM that does not know of it."""
    values, metadata = s24.mvue_pack(dz, seed, dz.dtype, "sm90")
    whole = s24.mm(values, metadata, dz.shape[1], dz.shape[0], "sm90", x, None, "row", torch.float32)
    return [part.t().contiguous() for part in whole.split(parts)]


def test_write_the_gradient_of_a_transposed_weight_as_it_is_stored() -> None:
    inputs = torch.randn(T, F), torch.randn(T, D), torch.zeros(1, dtype=torch.int64)
    graph = traced(lambda dz, x, seed: weight_gradient(dz, x, seed, [F]), *inputs)
    assert choose_layouts(graph, CPU) == 2
    assert_expected_inline(
        print_graph(graph),
        """\
%in0: f32[24, 32]
%in1: f32[24, 16]
%in2: i64[1]
%s24.mvue_pack0: (f32[32, 16], i16[2, 2, 256]) = s24.mvue_pack(%in0, %in2, f32, 'sm90')
%getitem0: f32[32, 16] = getitem(%s24.mvue_pack0, 0)
%getitem1: i16[2, 2, 256] = getitem(%s24.mvue_pack0, 1)
%s24.mm0: f32[32, 16] col = s24.mm(%getitem0, %getitem1, 32, 24, 'sm90', %in1, None, 'col', f32)
%split_with_sizes0: (f32[32, 16] col) = split_with_sizes(%s24.mm0, [32])
%getitem2: f32[32, 16] col = getitem(%split_with_sizes0, 0)
%t0: f32[16, 32] = t(%getitem2)
return [%t0]""",
    )


def test_leave_slices_that_are_copied_in_either_layout() -> None:
    inputs = torch.randn(T, F), torch.randn(T, D), torch.zeros(1, dtype=torch.int64)
    graph = traced(lambda dz, x, seed: weight_gradient(dz, x, seed, [F // 2, F // 2]), *inputs)
    assert choose_layouts(graph, CPU) == 0


def test_leave_a_copy_that_another_kernel_stands_in_front_of() -> None:
    graph = traced(lambda x: gemm(x, "row").t().relu().contiguous(), torch.randn(T, D))
    assert choose_layouts(graph, CPU) == 0


def test_leave_a_copy_that_both_layouts_need() -> None:
    def batch_behind_tokens(x: Tensor) -> Tensor:
        return gemm(x, "col").t().view(2, T // 2, F).transpose(0, 1).contiguous()

    graph = traced(batch_behind_tokens, torch.randn(T, D))
    before = print_graph(graph)
    assert choose_layouts(graph, CPU) == 0
    assert print_graph(graph) == before


@pytest.mark.parametrize("reader", [torch.relu, lambda z: z])
def test_leave_a_copy_of_what_somebody_else_reads(reader: Callable[[Tensor], Tensor]) -> None:
    def shared(x: Tensor) -> tuple[Tensor, Tensor]:
        z = gemm(x, "row")
        return reader(z), z.t().contiguous()

    graph = traced(shared, torch.randn(T, D))
    assert choose_layouts(graph, CPU) == 0
    assert layouts(graph) == ["row"]


def test_keep_a_needed_copy_apart_from_its_source() -> None:
    def twice(x: Tensor) -> tuple[Tensor, Tensor]:
        z = gemm(x, "col").t()
        return z, z.clone(memory_format=torch.contiguous_format)

    graph = traced(twice, torch.randn(T, D))
    assert choose_layouts(graph, CPU) == 0


def test_give_pointwise_readers_the_strides_they_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_plan, "MEASURED", COLUMNS_ARE_DEAR)
    graph = traced(lambda x, dx: gemm(x, "col", D).t() + dx, torch.randn(T, D), torch.randn(T, D))
    assert choose_layouts(graph, CPU) == 0
    assert layouts(graph) == ["col"]


def test_turn_z_and_its_reader_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer is recomputed, `mm_dact` reads the Z of a GEMM in the same graph."""

    def backward(x: Tensor, dy: Tensor, seed: Tensor) -> Any:
        z = gemm(x, "col")
        values, metadata = FORMATS["sm90"].empty(F, D, x.dtype, x.device)
        dz = s24.mm_dact(values, metadata, F, D, "sm90", dy.t(), z, "gelu", "col")
        return s24.mvue_pack(dz.t(), seed, x.dtype, "sm90")

    inputs = torch.randn(T, D), torch.randn(T, D), torch.zeros(1, dtype=torch.int64)
    graph = traced(backward, *inputs)
    monkeypatch.setattr(layout_plan, "MEASURED", {("reference", "mm", RESULT): Pace(col=150)})
    assert choose_layouts(graph, CPU) == 2
    assert layouts(graph) == ["row", "row"]

    graph = traced(backward, *inputs)
    reading = {("reference", "mvue_pack", 0): Pace(col=160)}
    monkeypatch.setattr(layout_plan, "MEASURED", {("reference", "mm", RESULT): Pace(col=150), **reading})
    assert choose_layouts(graph, CPU) == 0, "what is won in front of it is lost behind it"


def test_count_the_second_read_of_what_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        z = gemm(x, "col", 2 * F).t()
        return s24.glu(z, "gelu", "first"), z

    def turned(**columns: int) -> bool:
        graph = traced(forward, torch.randn(T, D))
        (output,) = graph.find_nodes(op="output")
        output.meta["user_visible_output_idxs"] = [0]
        reads = {("reference", op, index): Pace(col=columns[op]) for op, index in (("glu", 0), ("glu_backward", 1))}
        monkeypatch.setattr(layout_plan, "MEASURED", {("reference", "mm", RESULT): Pace(col=150), **reads})
        return choose_layouts(graph, CPU) == 1

    assert turned(glu=120, glu_backward=120)
    assert not turned(glu=120, glu_backward=140)


@pytest.mark.parametrize("cut", [lambda x: x, lambda x: x[: x.shape[0] // 2]])
def test_decide_for_symbolic_sizes(cut: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_plan, "MEASURED", COLUMNS_ARE_DEAR)
    graph = traced(
        lambda x: s24.glu(gemm(cut(x), "col", 2 * F).t(), "gelu", "first"), torch.randn(T, D), mode="symbolic"
    )
    assert choose_layouts(graph, CPU) == 1
    assert layouts(graph) == ["row"]


def step(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[list[str], list[str]]:
    """Trains one step with Inductor, checks its numbers, and returns the lowered graphs and Inductor's code."""
    options = {"gradient": "dense", "decay": 0.0, **options}
    fast = torch.compile(model, backend="s24", options=options, fullgraph=True)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))

    def run() -> Tensor:
        y = fast(ours)
        y.square().sum().backward()
        return y

    with captured_lowerings(monkeypatch) as texts, fresh_cache():
        y, code = run_and_get_code(run)
    got = gradients(model)
    expected = masked_call(model, live_masks(model), theirs)
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    for name, value in gradients(model).items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-4)
    return texts, code


def test_choose_the_column_major_geglu_where_gemms_write_it_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Z and dH are turned, Z as it is saved, too; Y and dX are not: their readers want rows."""
    monkeypatch.setattr(layout_plan, "MEASURED", COLUMNS_ARE_DEAR)
    (forward, backward), code = step(FusedGated(nn.functional.gelu), torch.randn(2, 8, 16), monkeypatch)
    assert "cpp_fused" not in "".join(code), "a copy"
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
%s24.mm0: f32[64, 16] = s24.mm(%in3, %in4, 64, 16, 'sm90', %permute0, None, 'row', f32)  # reference
%permute1: f32[16, 64] col = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 64] strides (8, 1, 16) = reshape(%permute1, [2, 8, 64])
%s24.glu0: f32[2, 8, 32] = s24.glu(%reshape1, 'gelu', 'first')  # reference
%reshape2: f32[16, 32] = reshape(%s24.glu0, [-1, 32])
%permute2: f32[32, 16] col = permute(%reshape2, [1, 0])
%s24.mm1: f32[16, 16] col = s24.mm(%in7, %in8, 16, 32, 'sm90', %permute2, None, 'col', f32)  # reference
%permute3: f32[16, 16] = permute(%s24.mm1, [1, 0])
%reshape3: f32[2, 8, 16] = reshape(%permute3, [2, 8, 16])
%reshape4: f32[16, 32] = reshape(%s24.glu0, [-1, 32])
%reshape5: f32[16, 16] = reshape(%in1, [-1, 16])
return [%reshape3, %in5, %in6, %in9, %in10, %reshape1, %reshape4, %reshape5]""",
    )
    assert_expected_inline(
        backward,
        """\
%in0: f32[16, 32]
%in1: i16[1, 1, 256]
%in2: f32[32, 8]
%in3: i16[1, 1, 256]
%in4: f32[2, 8, 64] strides (8, 1, 16)
%in5: f32[16, 32]
%in6: f32[16, 16]
%in7: f32[2, 8, 16]
%reshape0: f32[16, 16] = reshape(%in7, [-1, 16])
%permute0: f32[16, 16] col = permute(%reshape0, [1, 0])
%mm0: f32[16, 32] = mm(%permute0, %in5)
%split_with_sizes0: (f32[16, 32]) = split_with_sizes(%mm0, [16])
%getitem0: f32[16, 32] = getitem(%split_with_sizes0, 0)
%s24.mm0: f32[32, 16] = s24.mm(%in2, %in3, 32, 16, 'sm90', %permute0, None, 'row', f32)  # reference
%permute1: f32[16, 32] col = permute(%s24.mm0, [1, 0])
%reshape1: f32[2, 8, 32] strides (8, 1, 16) = reshape(%permute1, [2, 8, 32])
%s24.glu_backward0: f32[2, 8, 64] = s24.glu_backward(%reshape1, %in4, 'gelu', 'first')  # reference
%reshape2: f32[16, 64] = reshape(%s24.glu_backward0, [-1, 64])
%permute2: f32[64, 16] col = permute(%reshape2, [1, 0])
%mm1: f32[64, 16] = mm(%permute2, %in6)
%split_with_sizes1: (f32[64, 16]) = split_with_sizes(%mm1, [64])
%getitem1: f32[64, 16] = getitem(%split_with_sizes1, 0)
%s24.mm1: f32[16, 16] col = s24.mm(%in0, %in1, 16, 64, 'sm90', %permute2, None, 'col', f32)  # reference
%permute3: f32[16, 16] = permute(%s24.mm1, [1, 0])
%reshape3: f32[2, 8, 16] = reshape(%permute3, [2, 8, 16])
return [%getitem1, %reshape3, %getitem0, None, None, None, None, None, None, None, None]""",
    )


@pytest.mark.parametrize("memory", ["speed", "save"])
def test_train_with_turned_layouts(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_plan, "MEASURED", COLUMNS_ARE_DEAR)
    (_, backward), _ = step(FusedGated(nn.functional.silu), torch.randn(2, 8, 16), monkeypatch, memory=memory)
    assert ", 'row', " in backward


def test_leave_what_is_saved_with_symbolic_strides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_plan, "MEASURED", COLUMNS_ARE_DEAR)
    model = FusedGated(nn.functional.gelu)
    fast = torch.compile(model, backend="s24", options={"gradient": "dense", "decay": 0.0}, dynamic=True)
    with captured_lowerings(monkeypatch) as texts, fresh_cache():
        for tokens in (8, 12):
            y = fast(torch.randn(2, tokens, 16))
            y.sum().backward()
    assert len(texts) == 2, "no recompilation"
    assert "'row'" not in texts[0]
