"""2:4 GEMM against cuBLAS and cuSPARSELt on the FFN shapes of GPT-2, BERT, ViT and Llama: checked, then timed.

    python benchmarks/gemm.py                      check, time, write results/gemm.json and results/gemm.png
    python benchmarks/gemm.py --tune               also sweep schedules first and write the tuned table
    python benchmarks/gemm.py --check              correctness only, over every kernel that is built
    python benchmarks/gemm.py --calls              only the CPU time of a call, in place of that in results/gemm.json
    python benchmarks/gemm.py --models gpt2 --tokens 4096
    python benchmarks/gemm.py --fp8                in eight bits, on Llama's shapes; with --check and --tune as above

Speed is 2 m n k / time in dense-equivalent TFLOP/s; a ratio is the better of two cuBLAS layouts over ours, from
interleaved bursts of one run. Random normal data (zeros flatter every kernel). Predictions and outcomes: NOTES-gemm.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gemm_parts import chart, check, narrow, peers, tune
from benchmarks.gemm_parts.narrow_check import check_narrow
from benchmarks.gemm_parts.operands import random_sparse, relative_error
from benchmarks.gemm_parts.ours import activations, sparse_mm
from benchmarks.gemm_parts.shapes import TOKENS, TUNED_TOO, Shape, shapes
from benchmarks.timing import compare_us, cpu_us
from s24compile.errors import BuildError
from s24compile.kernels.activations import DENSE
from s24compile.kernels.gemm.cutlass import objects, tuned
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, Schedule, Signature

NEEDS_GPU = True
FUSED: dict[tuple[str, bool], tuple[tune.Epilogue, ...]] = {
    ("fw1", False): ("act", "dact"), ("fw1", True): ("glu",), ("dH", True): ("dglu",),
}  # fmt: skip
"""Epilogues that run on the shape of a role, of a plain and of a gated layer."""
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Runs what the command line asks for; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=[], help="parts of model names; default: all")
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    parser.add_argument("--check", action="store_true", help="stop after the correctness checks")
    parser.add_argument("--tune", action="store_true", help="sweep and write the tuned table")
    parser.add_argument("--table", type=Path, default=tuned.TABLE, help="where --tune writes")
    parser.add_argument("--fp8", action="store_true", help="operands of eight bits, against torch._scaled_mm")
    parser.add_argument("--out", type=Path, help="default: results/gemm.json or results/gemm_fp8.json")
    parser.add_argument("--no-cusparselt", action="store_true", help="leave its 32 trials a shape out")
    parser.add_argument("--seconds", type=float, default=3600, help="start no new shape after this long")
    parser.add_argument("--calls", action="store_true", help="time calls on the CPU alone, for the rows that are there")
    given = parser.parse_args()
    name = "gemm_fp8" if given.fp8 else "gemm"
    out = given.out or RESULTS / f"{name}.json"
    if given.calls:
        return renew_calls(RESULTS / "gemm.json", out)
    deadline = time.monotonic() + given.seconds
    torch.manual_seed(0)
    if not (check_all(narrow.built_kernels(), check_narrow) if given.fp8 else check_all(built_kernels())):
        return 1
    if given.check:
        return 0
    models, tokens = tuple(given.models), tuple(given.tokens)
    chosen = narrow.narrow_shapes(models, tokens) if given.fp8 else shapes(models, tokens)
    if given.tune:
        more = [] if given.fp8 else shapes(models, tokens, TUNED_TOO)
        sweep = narrow.tune_shape if given.fp8 else tune.tune
        tune_all(chosen + more, sweep, given.table, out.with_suffix(".sweep.json"), deadline)
    each = narrow.time_shape if given.fp8 else functools.partial(time_shape, cusparselt=not given.no_cusparselt)
    results = time_all(chosen, each, deadline, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    chart.draw(results, out.with_suffix(".png"), "fp8" if given.fp8 else "bf16")
    print(f"geometric mean {results['geomean']:.3f}, least {results['least']:.3f}, over {len(results['shapes'])} GEMMs")
    return 0


def renew_calls(known: Path, out: Path) -> int:
    """Writes the results in `known` to `out`, with the CPU time of warm calls as it is now; returns 0."""
    results = json.loads(known.read_text())
    by_size = {(shape.model, shape.role, shape.m, shape.n, shape.k): shape for shape in shapes()}
    for row in results["shapes"]:
        shape = by_size[row["model"], row["role"], row["m"], row["n"], row["k"]]
        bs = activations(shape, torch.bfloat16, 2)
        run = sparse_mm(random_sparse(shape.m, shape.k, torch.bfloat16, "cuda"), bs, shape, torch.bfloat16)
        row["cpu_us"] = cpu_us(run, 100)
        torch.cuda.empty_cache()
    results["cpu"] = {"date": dt.date.today().isoformat(), **machine()}
    times = sorted(row["cpu_us"] for row in results["shapes"])
    print(f"CPU of a call: median {times[len(times) // 2]:.1f} us, {times[0]:.1f} to {times[-1]:.1f}")
    out.write_text(json.dumps(results, indent=1) + "\n")
    return 0


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    properties = torch.cuda.get_device_properties(0)
    return {"gpu": properties.name, "sms": properties.multi_processor_count, "torch": torch.__version__}


def built_kernels() -> list[Kernel]:
    """Every kernel of the training set, and of the epilogues, that is already built."""
    fp = ("bf16", "fp16")
    signatures = [
        Signature(dtype, a, b, d, out, epilogue, act, bias)  # type: ignore[arg-type]
        for dtype in fp
        for a in ("k", "m")
        for b in ("k", "n")
        for d in ("row", "col")
        for out in (dtype, "fp32")
        for epilogue in ("plain", "bias", "add", "act", "dact", "dact_sum", "glu", "dglu")
        for act in (("",) if epilogue in ("plain", "bias", "add") else DENSE)
        for bias in ((dtype, "fp32") if epilogue in ("bias", "act") else ("",))
    ]
    hows = dict.fromkeys([*tune.SCHEDULES, *tuned.schedules(), Schedule()])
    kernels = [Kernel(signature, how) for signature in signatures for how in hows]
    return [kernel for kernel in kernels if objects.object_path(kernel) is not None]


def check_all(kernels: list[Kernel], each: Callable[..., Iterable[check.Check]] = check.check_kernel) -> bool:
    """Checks every kernel at every size; prints failures and the worst ratio."""
    failed, worst, count = 0, 0.0, 0
    for kernel in kernels:
        for size in check.SIZES:
            for result in each(kernel, size):
                count += 1
                worst = max(worst, result.error / max(result.dense_error, 1e-6))
                if not result.passes:
                    failed += 1
                    print(f"WRONG {result}")
    try:
        views = list(check.check_views()) if each is check.check_kernel else []
    except BuildError as error:
        print(f"views are not checked: {error}")
        views = []
    for result in views:
        count += 1
        if not result.passes:
            failed += 1
            print(f"WRONG {result}")
    print(f"{count} checks, {failed} failed; error at most {worst:.2f} times that of dense torch", flush=True)
    return failed == 0


def tune_all(
    chosen: list[Shape], each: Callable[[Shape, tune.Epilogue], tune.Tuned], table: Path, sweep: Path, deadline: float
) -> None:
    """Sweeps every shape and writes the table after each, so that a cut run leaves what it has."""
    results: list[tune.Tuned] = []
    done: set[tuple[int, int, int, str]] = set()
    for shape in chosen:
        fused = FUSED.get((shape.role, shape.gated), ())
        for epilogue in ("plain", *fused):
            key = (shape.m, shape.n, shape.k, epilogue)
            if key in done or time.monotonic() > deadline:
                continue
            done.add(key)
            results.append(each(shape, epilogue))
            entry = results[-1].entry
            tflops = shape.flops / entry["us"] / 1e6
            print(
                f"{shape.role:4} {epilogue:5} {key[:3]} {entry['choice']} {entry['us']:.1f} us {tflops:.0f} TF",
                flush=True,
            )
            sweep.write_text(json.dumps([result.entry | {"all_us": result.times} for result in results]) + "\n")
            tune.write_table(table, results, machine())
            torch.cuda.empty_cache()
    tuned.table.cache_clear()
    tuned._nearest.cache_clear()


def time_all(
    chosen: list[Shape], each: Callable[[Shape], dict[str, Any]], deadline: float, name: str
) -> dict[str, Any]:
    """Checks a sample of each result, then times ours, cuBLAS and cuSPARSELt together."""
    rows: list[dict[str, Any]] = []
    for shape in chosen:
        if time.monotonic() > deadline:
            break
        row = each(shape)
        rows.append(row)
        peer = row["cusparselt_speedup"]
        print(
            f"{shape.model.partition(',')[0]:11} {shape.role:4} {shape.m:6}x{shape.n:6}x{shape.k:6} "
            f"{row['us']:9.1f} us {row['tflops']:7.0f} TF  x{row['speedup']:.3f} cuBLAS"
            + (f", which cuSPARSELt beats x{peer:.2f}" if peer else ""),
            flush=True,
        )
        torch.cuda.empty_cache()
    logs = [math.log(row["speedup"]) for row in rows]
    return {
        "benchmark": name,
        "machine": machine(),
        "date": dt.date.today().isoformat(),
        "geomean": math.exp(sum(logs) / max(1, len(logs))),
        "least": min((row["speedup"] for row in rows), default=math.nan),
        "shapes": rows,
    }


def time_shape(shape: Shape, cusparselt: bool = True, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """One row of the results."""
    s = random_sparse(shape.m, shape.k, dtype, "cuda")
    operand_bytes = 2 * shape.k * shape.n
    bs = activations(shape, dtype, max(2, min(6, 200_000_000 // operand_bytes)))
    run = sparse_mm(s, bs, shape, dtype)
    sample = torch.randperm(shape.m, device="cuda")[:64]
    weight = s.dense()
    got = run(0)
    assert isinstance(got, torch.Tensor)
    exact = weight[sample].double() @ bs[0].double()
    error = relative_error(got[sample], exact)
    if error > 2 * relative_error(weight[sample] @ bs[0], exact):
        raise AssertionError(f"{shape} is wrong: relative error {error}")
    dense = torch.randn_like(weight)
    competitors = peers.cublas(dense, bs, shape)
    sparselt = peers.cusparselt(weight, bs) if cusparselt else {}
    choice = tuned.choose(tune.signature(shape), shape.m, shape.n, shape.k)
    times = compare_us({"s24": run, **competitors, **sparselt})
    best = min(times[name] for name in competitors)
    peer = best / min(times[name] for name in sparselt) if sparselt else None
    return {
        "model": shape.model, "role": shape.role, "m": shape.m, "n": shape.n, "k": shape.k,
        "us": times["s24"], "tflops": shape.flops / times["s24"] / 1e6, "speedup": best / times["s24"],
        "cusparselt_speedup": peer, "choice": choice.name, "cpu_us": cpu_us(run, 100), "error": error, "all_us": times,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
