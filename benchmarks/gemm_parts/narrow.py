"""The 2:4 GEMM in eight bits: its shapes, operands and runs; what gemm.py --fp8 times and tunes.

Weights and activations are e4m3, gradients e5m2, and every operand lies along the contraction dim: only so do the
tensor cores read eight bits, and cuBLASLt too. Sums are wgmma's own on both sides ("fast accumulation").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gemm_parts import tune
from benchmarks.gemm_parts.operands import Sparse, random_sparse, relative_error
from benchmarks.gemm_parts.ours import layout
from benchmarks.gemm_parts.shapes import FFNS, Shape, shapes
from benchmarks.timing import Run, compare_us, cpu_us
from s24compile.kernels.gemm.cutlass import objects, scaled, tuned
from s24compile.kernels.gemm.cutlass.instantiations import EXACT, Element, Kernel, Schedule, Signature
from s24compile.kernels.gemm.cutlass.training_sets import narrow_training_set
from s24compile.kernels.packed import ScaledPair

SCHEDULES = (*tune.SCHEDULES, Schedule())
"""What a sweep tries; CUTLASS's own main loop too, for a tile has twice as much metadata as one of 16-bit operands."""
MODELS = {name: dims for name, dims in FFNS.items() if name.startswith("llama")} | {
    "llama-1b": (2048, 16384, 8192),
    "llama-3b": (3072, 16384, 8192),
}
"""As FFNS: those that are large enough to train in eight bits."""
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def narrow_shapes(models: tuple[str, ...], tokens: tuple[int, ...]) -> list[Shape]:
    """Every GEMM of the models."""
    return shapes(models, tokens, MODELS)


def types(shape: Shape) -> tuple[Element, Element]:
    """Of the packed operand and of B: the estimate of a gradient by activations, or a weight by either."""
    if shape.gradient:
        return "e5m2", "e4m3"
    return ("e4m3", "e5m2") if shape.role in ("dX", "dH") else ("e4m3", "e4m3")


def signature(shape: Shape, epilogue: tune.Epilogue = "plain") -> Signature:
    """The kernel that training runs for a shape."""
    a, b = types(dataclasses.replace(shape, role="dH") if epilogue in ("dact", "dglu") else shape)
    other: Any = "" if a == b else b
    d: Any = layout(shape)
    if epilogue == "plain":
        return Signature(a, "k", "k", d, "bf16", other=other)
    act = "silu" if epilogue.endswith("glu") else "gelu"
    return Signature("e4m3", "k", "k", "col", "bf16", epilogue, act, "bf16" if epilogue == "act" else "", other)


def to_sweep() -> list[Kernel]:
    """What --tune needs built to compare all schedules."""
    roles = [Shape("", role, 1, 1, 1) for role in ("fw1", "dX", "dW1")]
    fused: tuple[tune.Epilogue, ...] = ("act", "dact", "glu", "dglu")
    signatures = [signature(shape) for shape in roles] + [signature(roles[0], epilogue) for epilogue in fused]
    return [Kernel(each, how) for each in signatures for how in SCHEDULES]


def built_kernels() -> list[Kernel]:
    """Those of the training set, with either kind of sums, that are built."""
    hows = tuple(dict.fromkeys([*SCHEDULES, *tuned.schedules(narrow=True)]))
    exact = [dataclasses.replace(kernel.signature, sums="exact") for kernel in narrow_training_set()]
    kernels = narrow_training_set(hows) + [Kernel(each, EXACT) for each in exact]
    return [kernel for kernel in kernels if objects.object_path(kernel) is not None]


def random_rows(rows: int, cols: int, element: str, device: str = "cuda") -> Tensor:
    """Random normal [rows, cols] in eight bits."""
    return torch.randn(rows, cols, device=device).to(DTYPES[element])


def random_pair(
    m: int, n: int, k: int, types: tuple[str, str], format: str = "sm90", device: str = "cuda"
) -> tuple[Sparse, ScaledPair]:
    """(S [m, k], S with a column-major B [k, n]), random normal, and scales that bring the product to order 1."""
    s = random_sparse(m, k, DTYPES[types[0]], device)
    scales = torch.tensor([[0.5], [2 * max(k, 1) ** -0.5]], device=device)
    return s, ScaledPair(s.packed(format), scales[0], random_rows(n, k, types[1], device).t(), scales[1])


def runner(shape: Shape, epilogue: tune.Epilogue) -> Callable[[tuned.Choice], Run]:
    """choice -> a run of `shape` on fresh operands under that choice."""
    m, n, k = shape.m, shape.n, shape.k
    kinds = (wanted := signature(shape, epilogue)).dtype, wanted.other or wanted.dtype
    _, pair = random_pair(m, n, k, kinds, "sm90_gated" if epilogue == "glu" else "sm90")
    pairs = [pair, pair._replace(b=random_rows(n, k, kinds[1]).t())]
    out, how = torch.bfloat16, layout(shape)
    if epilogue == "plain":
        return lambda choice: lambda i: scaled.scaled_mm(pairs[i % 2], None, how, out, False, choice)
    if epilogue == "act":
        bias = torch.randn(m, device="cuda", dtype=out)
        return lambda choice: lambda i: scaled.scaled_mm_act(pairs[i % 2], bias, "gelu", "col", out, False, choice)
    if epilogue == "glu":
        return lambda choice: lambda i: scaled.scaled_mm_glu(pairs[i % 2], "silu", "first", out, False, choice)
    z = torch.randn(n, 2 * m if epilogue == "dglu" else m, device="cuda", dtype=out).t()
    if epilogue == "dglu":
        return lambda choice: lambda i: scaled.scaled_mm_dglu(pairs[i % 2], z, "silu", "first", False, choice)
    return lambda choice: lambda i: scaled.scaled_mm_dact(pairs[i % 2], z, "gelu", "col", False, False, choice)


def tune_shape(shape: Shape, epilogue: tune.Epilogue = "plain") -> tune.Tuned:
    """`tune.sweep` over the schedules that are built."""
    return tune.sweep(shape, signature(shape, epilogue), runner(shape, epilogue), SCHEDULES)


def cublas(weight: Tensor, xs: Sequence[Tensor], descales: tuple[Tensor, Tensor]) -> dict[str, Callable[[int], Tensor]]:
    """The dense product in either orientation, of operands that are quantised already.

    Args:
        weight: [m, k]; xs: B^T [n, k] each; row-major both.
        descales: fp32 [1], of the weight and of B.
    """
    of_weight, of_b, sets = *descales, len(xs)
    how: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    return {
        "X @ W.T": lambda i: torch._scaled_mm(xs[i % sets], weight.t(), of_b, of_weight, **how),
        "W @ X.T": lambda i: torch._scaled_mm(weight, xs[i % sets].t(), of_weight, of_b, **how),
    }


def time_shape(shape: Shape) -> dict[str, Any]:
    """One row of the results: ours and cuBLAS, both on operands that are quantised already.

    Raises:
        AssertionError: 64 rows of ours are twice as far from fp64 as cuBLAS's of the same operands.
    """
    s, pair = random_pair(shape.m, shape.n, shape.k, kinds := types(shape))
    sets = max(2, min(6, 200_000_000 // (shape.k * shape.n)))
    xs = [pair.b.t(), *(random_rows(shape.n, shape.k, kinds[1]) for _ in range(sets - 1))]
    pairs, how = [pair._replace(b=x.t()) for x in xs], layout(shape)

    def run(i: int) -> Tensor:
        return scaled.scaled_mm(pairs[i % sets], None, how, torch.bfloat16, False)

    descales = pair.descale_a, pair.descale_b
    sample = torch.randperm(shape.m, device="cuda")[:64]
    rows = s.dense(torch.float32)[sample]
    exact = rows.double() @ pair.b.double() * (descales[0] * descales[1])
    error = relative_error(run(0)[sample], exact)
    if error > 2 * relative_error(cublas(rows.to(pair.a.dtype), xs[:1], descales)["W @ X.T"](0), exact):
        raise AssertionError(f"{shape} is wrong: relative error {error}")
    # Zeros would cost the dense product less power than it costs in training.
    competitors = cublas(random_rows(shape.m, shape.k, kinds[0]), xs, descales)
    times = compare_us({"s24": run, **competitors})
    best = min(times[name] for name in competitors)
    choice = tuned.choose(signature(shape), shape.m, shape.n, shape.k)
    return {
        "model": shape.model, "role": shape.role, "m": shape.m, "n": shape.n, "k": shape.k,
        "types": "x".join(dict.fromkeys(kinds)), "us": times["s24"], "tflops": shape.flops / times["s24"] / 1e6,
        "speedup": best / times["s24"], "cusparselt_speedup": None, "choice": choice.name,
        "cpu_us": cpu_us(run, 100), "error": error, "all_us": times,
    }  # fmt: skip
