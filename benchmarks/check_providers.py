"""Tries cuSPARSELt and the Ampere path on the GPU at hand: a line "pass" or "FAIL" for each question, in half a minute.

    python -m benchmarks.check_providers [--oracle sm80.<hash>.so]

Legend: A [m, k] sparse, B [k, n] dense. The Ampere path needs the oracle (python -m benchmarks.gemm_parts.sm80 builds
it on a machine with nvcc), unless this GPU is of compute capability 8.x.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.gemm_parts.operands import relative_error
from benchmarks.gemm_parts.sm80 import OBJECT, Oracle, standing_in
from benchmarks.timing import burst_us
from s24compile.kernels import ops as raw
from s24compile.kernels import providers
from s24compile.kernels.cusparselt import product as cusparselt
from s24compile.kernels.format import FORMATS
from s24compile.kernels.gemm import torch as ampere
from s24compile.kernels.packed import Packed24
from s24compile.kernels.target import Target

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SIZES = ((64, 128, 8), (72, 136, 24), (20, 22, 9), (768, 3072, 4096), (1600, 1600, 1031))
"""(m, k, n)."""
HOPPER = Target("cuda", (9, 0), ("triton", "cusparselt", "reference"))
Multiply = Callable[..., Tensor]


def sparse(m: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A random dense 2:4 matrix, and its mask."""
    padded = torch.randn(m, (k + 3) // 4 * 4, device="cuda").to(dtype)
    mask = raw.magnitude_mask(padded)[:, :k]
    return torch.where(mask, padded[:, :k], 0.0), mask


def check_products(format: str, multiply: Multiply) -> str:
    """Every size, both layouts of the output, with and without bias, 16 bits and fp32, against fp64 beside cuBLAS."""
    worst = 0.0
    for dtype in (BF16, FP16):
        for m, k, n in SIZES:
            a, mask = sparse(m, k, dtype)
            values, metadata = raw.pack(a, mask, dtype, format)
            packed = Packed24.of(values, metadata, m, k, format)
            bias = torch.randn(m, device="cuda", dtype=dtype)
            for b in (torch.randn(n, k, device="cuda", dtype=dtype).t(), torch.randn(k, n, device="cuda", dtype=dtype)):
                for layout in ("row", "col"):
                    for added, out in ((None, dtype), (bias, dtype), (None, FP32)):
                        found = multiply(packed, b, added, layout, out)
                        assert found.stride() == ((n, 1) if layout == "row" else (1, m)), (found.stride(), layout)
                        extra = 0 if added is None else added[:, None]
                        exact = a.double() @ b.double() + extra
                        ours, dense = relative_error(found, exact), relative_error(a @ b + extra, exact)
                        assert ours <= 2 * dense + 1e-6, f"{(m, k, n, layout, out)}: {ours:.2e}, cuBLAS {dense:.2e}"
                        worst = max(worst, ours / max(dense, 1e-12))
    return f"at most {worst:.2f} times cuBLAS's error"


def check_buffer_sizes() -> str:
    """What the library asks for, and what `OpaqueFormat` sets aside."""
    same, short, larger = 0, [], 0
    for m in (16, 48, 64, 128, 192, 768, 1600, 4096):
        for k in (16, 64, 128, 192, 1600, 3072, 8192):
            asked = torch._cslt_compress(torch.zeros(m, k, dtype=BF16, device="cuda"))
            ours = FORMATS["cusparselt"].values_shape(m, k)
            same += tuple(asked.shape) == ours
            larger += asked.numel() < ours[0] * ours[1]
            if asked.numel() > ours[0] * ours[1]:
                short.append(f"{m}x{k}: {tuple(asked.shape)} asked, {ours} ours")
    for line in short:
        print(f"      {line}")
    assert not short, "the format's bound is too small"
    return f"{same} shapes equal, {larger} larger than asked for"


def check_packing() -> str:
    """pack, pack_both, pack_weight_, mvue_pack give what the sm90 format holds."""
    w = torch.randn(160, 208, device="cuda")
    mask = raw.transposable_mask(w)
    dense = torch.where(mask, w, 0.0).to(BF16)
    values, metadata, values_t, metadata_t = raw.pack_both(w, mask, BF16, "cusparselt")
    assert torch.equal(raw.unpack(values, metadata, 160, 208, "cusparselt"), dense), "pack_both"
    assert torch.equal(raw.unpack(values_t, metadata_t, 208, 160, "cusparselt"), dense.t()), "pack_both, transposed"
    place = BF16, torch.device("cuda")
    buffers = (*FORMATS["cusparselt"].empty(160, 208, *place), *FORMATS["cusparselt"].empty(208, 160, *place))
    patterns = [torch.zeros_like(raw.transposable_patterns(w))]
    raw.pack_weight_([w], patterns, *buffers, None, "transposable", True, "cusparselt", "out_in")
    assert torch.equal(raw.unpack(*buffers[:2], 160, 208, "cusparselt"), dense), "pack_weight_"
    assert torch.equal(raw.unpack(*buffers[2:], 208, 160, "cusparselt"), dense.t()), "pack_weight_, transposed"
    for tokens in (256, 37):
        g, seed = torch.randn(tokens, 96, device="cuda", dtype=BF16), torch.tensor([5], device="cuda")
        found = raw.unpack(*raw.mvue_pack(g, seed, BF16, "cusparselt"), 96, tokens, "cusparselt")
        plain = raw.unpack(*raw.mvue_pack(g, seed, BF16, "sm90"), 96, tokens, "sm90")
        assert torch.equal(found, plain), f"mvue_pack of {tokens} tokens"
    return "equal to the bit"


def check_algorithms() -> str:
    """What the library's search for an algorithm is worth for one large product."""
    a, mask = sparse(4096, 4096, BF16)
    values, metadata = raw.pack(a, mask, BF16, "cusparselt")
    packed = Packed24.of(values, metadata, 4096, 4096, "cusparselt")
    x = torch.randn(8192, 4096, device="cuda", dtype=BF16)

    def run(i: int) -> Tensor:
        return cusparselt.multiply(packed, x.t(), None, "col", BF16)

    error = relative_error(run(0), a.float() @ x.t().float())
    assert error < 0.01, f"off by {error:.2e}"
    fastest = next(reversed(cusparselt._fastest.values()))
    default = burst_us(lambda i: torch._cslt_sparse_mm(packed.values, x.t(), transpose_result=True), 5)
    took, cublas = burst_us(run, 5), burst_us(lambda i: torch.mm(x, a.t()), 5)
    return f"number {fastest} takes {took:.0f} us, the default {default:.0f}, cuBLAS {cublas:.0f}"


def check_graph_capture() -> str:
    """Compressor and product inside a CUDA graph, replayed on new data."""
    g = torch.randn(256, 128, device="cuda", dtype=BF16)
    x, seed = torch.randn(256, 64, device="cuda", dtype=BF16), torch.tensor([7], device="cuda")

    def step() -> Tensor:
        return raw.mm(*raw.mvue_pack(g, seed, BF16, "cusparselt"), 128, 256, "cusparselt", x, None, "row", BF16)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    g.normal_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, step()), "the replay computes something else"
    return "replays on new data"


def check_training() -> str:
    """Two steps of a layer whose weights and products are cuSPARSELt's, eager kernels after AOTAutograd."""
    net = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)).cuda()
    options: Any = {"inner": "aot_eager", "target": HOPPER, "min_speedup": 0}
    compiled, optimizer = torch.compile(net, backend="s24", options=options), torch.optim.AdamW(net.parameters())
    x, losses = torch.randn(512, 256, device="cuda"), []
    for _ in range(3):
        with torch.autocast("cuda", dtype=BF16):
            loss = (compiled(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[2] < losses[0], losses
    ran = {op: count for (op, name), count in providers.recorded().items() if name == "cusparselt"}
    assert {"mm", "mvue_pack"} <= set(ran), ran
    return f"loss {losses[0]:.3f} -> {losses[2]:.3f}"


def ask(question: str, check: Callable[[], str]) -> bool:
    """Prints one line; the traceback of a failure goes below it."""
    start = time.perf_counter()
    try:
        answer = check()
    except Exception as error:  # the other questions are worth their answers
        print(f"FAIL  {question}: {type(error).__name__}: {error}", flush=True)
        traceback.print_exc(limit=4, file=sys.stdout)
        return False
    print(f"pass  {question}: {answer}  [{time.perf_counter() - start:.1f} s]", flush=True)
    return True


def main() -> None:
    """Asks everything that this machine can answer; exit status 1 if an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", type=Path, default=OBJECT, help="object that benchmarks.gemm_parts.sm80 built")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    torch.manual_seed(0)
    passed = []
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, cuSPARSELt {torch.backends.cusparselt.version()}"
    )

    if "torch" in Target.detect(torch.device("cuda")).providers:
        passed.append(ask("Ampere: products", lambda: check_products("sm80", ampere.mm)))
    elif given.oracle.is_file():
        with standing_in(Oracle(given.oracle)):
            passed.append(ask("Ampere: products, by the oracle", lambda: check_products("sm80", ampere.mm)))
    else:
        print(f"skip  Ampere: {given.oracle} is not there; python -m benchmarks.gemm_parts.sm80 builds it")
    if torch.backends.cusparselt.is_available():
        providers._on_device.cache_clear()
        with mock.patch.object(Target, "detect", return_value=HOPPER):
            passed += [
                ask("cuSPARSELt: buffers", check_buffer_sizes),
                ask("cuSPARSELt: packing", check_packing),
                ask("cuSPARSELt: products", lambda: check_products("cusparselt", cusparselt.multiply)),
                ask("cuSPARSELt: algorithms", check_algorithms),
                ask("cuSPARSELt: CUDA graph", check_graph_capture),
                ask("cuSPARSELt: training", check_training),
            ]
        providers._on_device.cache_clear()
    else:
        print("skip  cuSPARSELt: this build of torch has none")
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
