"""What a kernel is handed, checked on a CPU: a recorder stands where the loaded object would be.

`test_cutlass_gpu.py` checks what the kernels make of it.
"""

from __future__ import annotations

import pytest
import torch

from s24compile.kernels.gemm.cutlass import gated, launch, layouts, plan
from s24compile.kernels.gemm.cutlass.instantiations import Schedule
from s24compile.kernels.gemm.cutlass.training_sets import narrow_training_set, training_set
from s24compile.kernels.gemm.cutlass.tuned import Choice, schedules
from s24compile.kernels.packed import Packed24
from tests.kernels import prebuild
from tests.kernels.recorder import MULTIPROCESSORS, WORKSPACE_BYTES, recording
from tests.kernels.test_cutlass_gpu import KERNELS, NARROW_KERNELS

M, N, K = 72, 40, 128


@pytest.fixture
def calls():
    """Every launch of the test."""
    with recording() as made:
        yield made


def operand(m: int = M, k: int = K, format: str = "sm90") -> Packed24:
    values, metadata = torch.zeros(m, k // 2, dtype=torch.bfloat16), torch.zeros(2, 2, 256, dtype=torch.int16)
    return Packed24.of(values, metadata, m, k, format)


def column_major(rows, columns, dtype=torch.bfloat16):
    return torch.zeros(columns, rows, dtype=dtype).t()


def test_hand_over_the_tensors_as_they_lie(calls):
    a, b, bias = operand(), column_major(K, N), torch.zeros(M)
    d = launch.mm(a, b, bias, "col", torch.bfloat16)
    (call,) = calls
    assert call.kernel.signature.name == "bf16_ak_bk_dcol_bf16_bias_fp32"
    wanted = {"values": a.values, "metadata": a.metadata, "b": b, "d": d, "bias": bias}
    assert {name: call.problem[name] for name in wanted} == {name: t.data_ptr() for name, t in wanted.items()}
    assert [call.problem[name] for name in ("source", "aux", "workspace")] == [0, 0, 0]
    strides = [call.problem[f"{name}_stride"] for name in ("values", "metadata", "b", "d")]
    assert strides == [K // 2, 2 * 256, K, M]
    assert [call.problem[name] for name in ("m", "n", "k", "metadata_rows", "sm_count")] == [
        M,
        N,
        K,
        2,
        MULTIPROCESSORS,
    ]
    assert d.stride() == (1, M)


def test_write_rows_that_are_no_multiple_of_16_bytes_through_a_wider_buffer(calls):
    d = launch.mm(operand(), torch.zeros(K, 9, dtype=torch.bfloat16), None, "row", torch.bfloat16)
    (call,) = calls
    assert call.kernel.signature.b == "n"
    assert call.problem["d_stride"] % 8 == 0
    assert call.problem["b_stride"] % 8 == 0
    assert call.problem["d"] != d.data_ptr()
    assert (d.shape, d.stride()) == ((M, 9), (9, 1))


@pytest.mark.parametrize("misplaced", [False, True])
def test_read_z_in_the_layout_of_the_result(calls, misplaced):
    z = torch.zeros(M, N, dtype=torch.bfloat16) if misplaced else column_major(M, N)
    launch.mm_dact(operand(), column_major(K, N), z, "gelu", "col")
    (call,) = calls
    assert call.kernel.signature.epilogue == "dact"
    assert (call.problem["aux"] == z.data_ptr()) != misplaced, "copied where it lies otherwise"
    assert call.problem["aux_stride"] == M


@pytest.mark.parametrize("layout", ["row", "col"])
def test_copy_z_as_it_is(layout):
    z = torch.arange(M * 9).view(M, 9)
    target = layouts.empty(M, 16 if layout == "row" else 9, layout, torch.float32, z.device)
    copy = layouts.like_output(z, target, layout, torch.float32)
    assert torch.equal(copy[:, :9], z.float())
    assert copy.stride() == target.stride()


def test_sum_the_partial_sums_of_the_tiles(calls):
    choice = Choice(Schedule((128, 256)))
    m, n = 200, 600
    dz, sums = launch.mm_dact_sum(operand(m), column_major(K, n), column_major(m, n), "gelu", "col", choice)
    (call,) = calls
    assert call.kernel.signature.epilogue == "dact_sum"
    assert call.problem["bias"] not in (0, call.problem["d"]), "the buffer of the partial sums goes in the bias's place"
    # The recorder writes r as the sum of row r in each of the three tiles along N, and NaN beyond M.
    assert torch.equal(sums, 3 * torch.arange(m, dtype=torch.float32))
    assert call.problem["d"] == dz.data_ptr()


def test_give_both_halves_of_a_gated_layer_their_places(calls):
    z, h = gated.mm_glu(operand(80, format="sm90_gated"), column_major(K, N), "silu", "second")
    dz = gated.mm_dglu(operand(40), column_major(K, N), z, "silu", "second")
    forward, backward = [call.problem for call in calls]
    assert (forward["aux"], forward["d"]) == (z.data_ptr(), h.data_ptr())
    assert forward["other"] == -40, "from the gate, which is the second half, back to the other"
    assert (backward["d"], backward["aux"]) == (dz.data_ptr() + 80, z.data_ptr() + 80)
    assert backward["other"] == -40


def test_bring_a_workspace_where_stream_k_splits(calls):
    choice = Choice(Schedule(stream_k=True, deep=True), splits=-1)
    launch.mm(operand(), column_major(K, N), None, "col", torch.bfloat16, choice)
    (call,) = calls
    assert (call.problem["workspace"] != 0, call.problem["workspace_bytes"], call.problem["splits"]) == (
        True,
        WORKSPACE_BYTES,
        -1,
    )


def test_add_to_c_with_its_factor(calls):
    c = column_major(M, N)
    launch.mm_add(operand(), column_major(K, N), c, 0.5, "col")
    (call,) = calls
    assert (call.problem["source"], call.problem["aux"], call.problem["beta"]) == (c.data_ptr(), 0, 0.5)


def test_choose_once_a_shape(calls):
    for _ in range(3):
        launch.mm(operand(), column_major(K, N), None, "col", torch.bfloat16)
    assert (plan.make_plan.cache_info().misses, len(calls)) == (1, 3)


@pytest.mark.parametrize("rows", [0, M])
def test_launch_nothing_where_there_is_nothing(calls, rows):
    columns = 0 if rows else N
    b = torch.zeros(K, columns, dtype=torch.bfloat16)
    dz, sums = launch.mm_dact_sum(operand(rows), b, torch.zeros(rows, columns), "relu", "col")
    assert (dz.shape, sums.tolist(), calls) == ((rows, columns), [0.0] * rows, [])


def test_know_every_kernel_that_a_gpu_will_be_asked_for():
    kernels = prebuild.wanted()
    assert len(set(kernels)) == len(kernels)
    assert {*KERNELS, *NARROW_KERNELS, *training_set("bf16"), *training_set("fp16")} <= set(kernels)
    assert set(narrow_training_set()) <= set(kernels)
    # The odd ones: what only a sample asks for, and what only a tuned shape does.
    names = {kernel.signature.name for kernel in kernels}
    assert {"fp16_ak_bn_drow_fp16_act_gelu_fp16", "bf16_ak_bk_dcol_bf16_act_relu_bf16"} <= names
    assert {kernel.schedule for kernel in kernels} == {
        *schedules(),
        *(kernel.schedule for kernel in (*KERNELS, *NARROW_KERNELS)),
    }
