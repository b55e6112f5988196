"""The CUTLASS kernels on a Hopper GPU: against fp64 beside dense torch's own error, then how they are called."""

import dataclasses
import threading

import pytest
import torch

from benchmarks.gemm_parts.check import SIZES, check_kernel, check_views
from benchmarks.gemm_parts.narrow_check import check_narrow
from benchmarks.gemm_parts.operands import random_sparse
from s24compile.kernels.gemm.cutlass import launch, loader
from s24compile.kernels.gemm.cutlass.instantiations import DEFAULT, EXACT, Kernel, Schedule, Signature
from s24compile.kernels.gemm.cutlass.tuned import Choice

pytestmark = pytest.mark.gpu

STREAM_K = Schedule(stream_k=True, deep=True)
SIGNATURES = [
    Signature("bf16", "k", "k", "col", "bf16"),
    Signature("bf16", "k", "k", "row", "bf16"),
    Signature("bf16", "k", "n", "row", "bf16"),
    Signature("bf16", "k", "n", "row", "fp32"),
    Signature("bf16", "m", "n", "row", "fp32"),
    Signature("bf16", "m", "k", "col", "bf16"),
    Signature("fp16", "k", "k", "col", "fp16"),
    Signature("bf16", "k", "k", "col", "bf16", "bias", bias="bf16"),
    Signature("bf16", "k", "k", "col", "bf16", "add"),
    Signature("bf16", "k", "k", "col", "bf16", "act", "gelu", "bf16"),
    Signature("bf16", "k", "k", "col", "bf16", "dact", "gelu"),
]
KERNELS = [Kernel(signature, DEFAULT) for signature in SIGNATURES] + [Kernel(SIGNATURES[0], STREAM_K)]
FORWARD, INPUTS, WEIGHTS = {"dtype": "e4m3"}, {"dtype": "e4m3", "other": "e5m2"}, {"dtype": "e5m2", "other": "e4m3"}
NARROW = [
    Signature(**FORWARD, a="k", b="k", d="col", out="bf16"),
    Signature(**FORWARD, a="k", b="k", d="col", out="bf16", epilogue="bias", bias="bf16"),
    Signature(**FORWARD, a="k", b="k", d="col", out="fp32", epilogue="add"),
    Signature(**FORWARD, a="k", b="k", d="col", out="bf16", epilogue="act", act="gelu", bias="bf16"),
    Signature(**FORWARD, a="k", b="k", d="col", out="bf16", epilogue="glu", act="silu"),
    Signature(**INPUTS, a="k", b="k", d="col", out="bf16"),
    Signature(**INPUTS, a="k", b="k", d="col", out="bf16", epilogue="dact", act="gelu"),
    Signature(**INPUTS, a="k", b="k", d="col", out="bf16", epilogue="dact_sum", act="gelu"),
    Signature(**INPUTS, a="k", b="k", d="col", out="bf16", epilogue="dglu", act="silu"),
    Signature(**WEIGHTS, a="k", b="k", d="row", out="bf16"),
    Signature(**WEIGHTS, a="k", b="k", d="row", out="fp32"),
]
NARROW_KERNELS = [Kernel(signature, DEFAULT) for signature in NARROW]
NARROW_KERNELS += [Kernel(NARROW[0], how) for how in (Schedule(), STREAM_K)]
NARROW_KERNELS.append(Kernel(dataclasses.replace(NARROW[9], sums="exact"), EXACT))
CHOICES = [Choice(), Choice(STREAM_K, splits=-1)]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_stay_within_twice_the_dense_error_at_every_size(kernel):
    for size in SIZES:
        for result in check_kernel(kernel, size):
            assert result.passes, result


@pytest.mark.parametrize("kernel", NARROW_KERNELS, ids=lambda kernel: kernel.name)
def test_stay_within_twice_the_error_of_dense_eight_bit_products_at_every_size(kernel):
    for size in SIZES:
        for result in check_narrow(kernel, size):
            assert result.passes, result


def test_take_views_of_every_kind():
    for result in check_views():
        assert result.passes, result


@pytest.mark.parametrize(("m", "n", "k"), [(64, 0, 64), (0, 8, 64), (64, 8, 0)])
@pytest.mark.parametrize("biased", [False, True])
def test_take_empty_dimensions(m, n, k, biased):
    s = random_sparse(m, k, torch.bfloat16, "cuda")
    bias = torch.randn(m, device="cuda", dtype=torch.bfloat16) if biased else None
    b = torch.randn(k, n, device="cuda", dtype=torch.bfloat16)
    d = launch.mm(s.packed(), b, bias, "col", torch.bfloat16)
    assert torch.equal(d, torch.zeros(m, n, device="cuda").to(d) + (0 if bias is None else bias[:, None]))


@pytest.fixture(params=CHOICES, ids=lambda choice: choice.name)
def call(request):
    s = random_sparse(768, 1024, torch.bfloat16, "cuda")
    x = torch.randn(4096, 1024, device="cuda", dtype=torch.bfloat16)

    def mm():
        return launch.mm(s.packed(), x.t(), None, "col", torch.bfloat16, request.param)

    mm.x = x
    mm()
    torch.cuda.synchronize()
    return mm


def test_replay_in_a_cuda_graph_on_new_data(call):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first = call()
        total = first + call()
    call.x.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(first, call())
    assert torch.equal(total, first + first)


def test_allocate_nothing_but_the_output(call):
    before = torch.cuda.memory_allocated()
    kept = call()
    assert torch.cuda.memory_allocated() - before == (kept.numel() * 2 + 511) // 512 * 512


def test_run_on_another_thread_and_stream(call):
    want, got = call(), []
    stream = torch.cuda.Stream()

    def run():
        with torch.cuda.stream(stream):
            got.append(call())

    torch.cuda.synchronize()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    stream.synchronize()
    assert torch.equal(got[0], want)


def test_wait_for_the_kernel_before(call):
    """Programmatic dependent launch starts us early: a slow producer of B must still have written all of it."""
    fresh = torch.randn_like(call.x)
    call.x.copy_(fresh)
    want = call().clone()
    for _ in range(20):
        call.x.zero_()
        call.x.copy_(fresh)
        assert torch.equal(call(), want)


def test_refuse_a_misaligned_problem():
    loaded = loader.load(KERNELS[0])
    odd = loader.PROBLEM.pack(8, *[0] * 17, *[64] * 3, *[0] * 4, 132, 1, 0, 1.0, 0.0)
    assert loaded.gemm(odd, 0) == loader.MISALIGNED
