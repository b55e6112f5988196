"""Samples of weights: an element of each row and of each column, compared by bits."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s24compile.kernels import ops
from s24compile.kernels.watch.sample import memory_shape, sample_stride, sampled

SIZES = st.integers(1, 40)


@given(SIZES, SIZES)
def test_pass_over_no_row_and_no_column(rows: int, columns: int) -> None:
    stride = sample_stride(rows, columns)
    places = torch.arange(0, rows * columns, stride)
    assert set((places // columns).tolist()) == set(range(rows))
    assert set((places % columns).tolist()) == set(range(columns))


def test_take_no_more_than_a_weight_needs() -> None:
    assert sampled(torch.zeros(768, 3072)).numel() == 3077
    assert sampled(torch.zeros(3072, 768)).numel() == 3077


def test_read_weights_as_they_lie_in_memory() -> None:
    weight = torch.arange(24.0).view(4, 6)
    assert memory_shape(weight.t()) == memory_shape(weight) == (4, 6)
    assert torch.equal(sampled(weight.t()), sampled(weight))
    for odd in (weight[:, :4], weight[0], torch.zeros(0, 4), weight.expand(2, 4, 6), weight.to_sparse()):
        assert memory_shape(odd) is None
        assert sampled(odd) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_find_which_weights_were_written(dtype: torch.dtype, device: str) -> None:
    weights = [torch.randn(8, 12, dtype=dtype, device=device) for _ in range(3)]
    weights[2][0] = float("nan")
    samples = [torch.empty_like(sampled(w), memory_format=torch.contiguous_format) for w in weights]
    found = torch.zeros(3, dtype=torch.int32, device=device)
    ops.copy_samples_(weights, samples)
    ops.compare_samples_(weights, samples, found, 1)
    assert found.tolist() == [0, 0, 0], "NaN is what it was"
    weights[0][3] *= -1.0
    weights[2][:, 5] = 0.0
    ops.compare_samples_(weights, samples, found, 7)
    assert found.tolist() == [7, 0, 7]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("take", [True, False])
def test_kernel_compiles_for_hopper(take: bool) -> None:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from s24compile.kernels.watch.triton_kernels import samples_many

    constants = {"BITS": tl.int32, "TAKE": take, "BLOCK": 1024}
    kinds = {"entries": "*i64", "owners": "*i32", "found": "*i32", "number": "i32"}
    names = samples_many.arg_names
    source = ASTSource(
        fn=samples_many,
        signature={n: kinds.get(n, "constexpr") for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert ".target sm_90" in compiled.asm["ptx"]
    assert "st.global" in compiled.asm["ptx"], "it writes what it finds"
