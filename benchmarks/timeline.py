"""Where the time of one feed-forward step goes: each kernel against its floor, on a timeline.

    python benchmarks/timeline.py          GPT-2 124M's, the GEGLU and Llama-7B's layer; results/timeline.json, .png
    python benchmarks/timeline.py --layers geglu

A floor is the larger of bytes over the copy bandwidth and operations over the rate of the 8192^3 sparse GEMM, both
measured in the same run. Kernels that are not ours (casts, by Inductor) have no floor of their own here. `host_us` is
what the CPU needs to launch a step when the GPU is not waited for; a step cannot be faster.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import record
from benchmarks.ffn import LAYERS, TOKENS, make
from benchmarks.gemm_parts.operands import random_sparse
from benchmarks.timing import burst_us, queue_us, repeat
from benchmarks.training import Variant, variants
from s24compile.kernels.gemm.cutlass import launch

NEEDS_GPU = True
STEPS = 5
LOST = 1.125
"""Bytes of a packed 16-bit element (half of the values and two bits for each of them), per logical element."""


def ceilings() -> dict[str, float]:
    """Measured limits: bytes per microsecond of a copy, operations per microsecond of a large sparse GEMM."""
    source = torch.randn(256 << 20, device="cuda")
    target = torch.empty_like(source)
    copy_us = min(burst_us(lambda i: target.copy_(source), 5) for _ in range(3))
    s = random_sparse(8192, 8192, torch.bfloat16, "cuda")
    b = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16).t()
    gemm_us = burst_us(lambda i: launch.mm(s.packed(), b, None, "col", torch.bfloat16), 10)
    return {"bytes_per_us": 2 * source.nbytes / copy_us, "flops_per_us": 2 * 8192**3 / gemm_us}


def work(op: str, shapes: list[list[int]], width: int, hidden: int, gated: bool) -> tuple[float, float]:
    """(operations, bytes) that one call of an s24 op must do, from its tensors' shapes."""
    if "pack_weight" in op:
        elements = (3 if gated else 2) * width * hidden
        return 0.0, elements * (4 + 2 * LOST + 1 / 16)
    if "mvue_pack" in op:
        tokens, features = shapes[0]
        return 0.0, tokens * features * (2 + LOST)
    if op.endswith(("::glu", "::glu_backward")):
        return 0.0, 2.0 * sum(float(torch.Size(s).numel()) for s in shapes[:2] if s) * 1.5
    m, (k, n) = shapes[0][0], shapes[5]
    extra = {"mm": 2.0, "mm_act": 4.0, "mm_dact": 4.0, "mm_glu": 3.0, "mm_dglu": 8.0}[op.partition("::")[2]]
    if op.endswith("::mm") and n < TOKENS:
        extra = 4.0  # a weight gradient, in fp32
    return 2.0 * m * n * k, m * k * LOST + 2.0 * k * n + extra * m * n


def one_step(variant: Variant, x: torch.Tensor, gradient: torch.Tensor) -> None:
    """Forward, backward and the packing of one step."""
    variant.step(x, gradient, search=False)
    variant.clear(x)


def profile_layer(name: str, limits: dict[str, float]) -> dict[str, Any]:
    """All kernels of a step, in order, with their floors."""
    kind, width, hidden, _ = LAYERS[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(TOKENS, width, device="cuda", requires_grad=True)
    (sparse,) = variants(make(kind, width, hidden), (), {"s24": {"min_speedup": 0.0}})
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        gradient = torch.randn_like(sparse.run(x))
    for _ in range(10):
        one_step(sparse, x, gradient)
    host_us = queue_us(lambda: repeat(lambda i: one_step(sparse, x, gradient), STEPS), 400_000_000) / STEPS
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], record_shapes=True) as prof:
        for _ in range(STEPS):
            one_step(sparse, x, gradient)
        torch.cuda.synchronize()
    kernels = [
        (kernel.name[:90], float(kernel.duration), event)
        for event in prof.events()
        for kernel in getattr(event, "kernels", [])
    ]
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for kernel_name, us, launched_by in kernels:
        event = _s24_op(launched_by)
        ours = event.name.startswith("s24")
        new: dict[str, Any] = {"op": event.name, "kernel": kernel_name, "us": 0.0, "calls": 0, "floor_us": None}
        row = rows.setdefault((event.name, kernel_name, str(event.input_shapes)), new)
        row["us"] += us / STEPS
        row["calls"] += 1 / STEPS
        if ours and row["floor_us"] is None and not kernel_name.startswith("Mem"):
            flops, moved = work(event.name, event.input_shapes, width, hidden, kind != "gelu")
            row["floor_us"] = max(flops / limits["flops_per_us"], moved / limits["bytes_per_us"])
            row["gflop"], row["megabytes"] = flops / 1e9, moved / 1e6
    # The last step's kernels, in the order in which they ran.
    ran = sorted(kernels, key=lambda item: item[2].time_range.start)
    order = []
    for kernel_name, us, launched_by in ran[-(len(ran) // STEPS) :]:
        event = _s24_op(launched_by)
        floor = rows[event.name, kernel_name, str(event.input_shapes)]["floor_us"]
        order.append({"op": event.name, "us": us, "floor_us": floor})
    return {
        "layer": name,
        "host_us": host_us,
        "kernel_us": sum(row["us"] for row in rows.values()),
        "kernels": sorted(rows.values(), key=lambda row: -row["us"]),
        "order": order,
    }


def _s24_op(event: Any) -> Any:
    """The event of the s24 op that launched a kernel, else the one that launched it."""
    outer = event
    while outer is not None and not outer.name.startswith("s24"):
        outer = outer.cpu_parent
    return event if outer is None else outer


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """One row a layer: the kernels of a step end to end, as wide as they take, with the floor of each inside it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, every = plt.subplots(len(results), 1, figsize=(12, 1.7 * len(results) + 0.8), squeeze=False)
    colours = {"mm": "#2a78d6", "mvue": "#e07b39", "pack": "#8a5fbf", "glu": "#3a9a5b"}
    for axes, result in zip(every[:, 0], results, strict=True):
        at = 0.0
        for step in result["order"]:
            name = step["op"].partition("::")[2] if step["op"].startswith("s24") else "cast"
            colour = next((c for part, c in colours.items() if part in name), "#9a9a9a")
            axes.broken_barh([(at, step["us"])], (0, 1), facecolor=colour, edgecolor="white", alpha=0.45)
            if step["floor_us"]:
                floor = min(step["us"], step["floor_us"])
                axes.broken_barh([(at, floor)], (0, 1), facecolor=colour, edgecolor="none")
            if step["us"] > result["kernel_us"] / 40:
                axes.text(at + step["us"] / 2, 0.5, name, rotation=90, ha="center", va="center", fontsize=6)
            at += step["us"]
        axes.set_yticks([])
        axes.set_xlim(0, at)
        axes.set_title(f"{result['layer']}: {result['kernel_us']:.0f} us of kernels a step", fontsize=8, loc="left")
    every[-1, 0].set_xlabel("microseconds; solid: the floor by bytes and operations")
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> int:
    """Profiles the layers asked for, prints a table each, writes JSON and a picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", default=["124m", "geglu", "llama-7b"], help="parts of layer names")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    given = parser.parse_args()
    limits = ceilings()
    results = []
    for name in LAYERS:
        if not any(part in name for part in given.layers):
            continue
        result = profile_layer(name, limits)
        print(f"{name}: {result['kernel_us']:.0f} us of kernels, {result['host_us']:.0f} us of host time a step")
        for row in result["kernels"]:
            floor = f"{row['floor_us']:8.1f}" if row["floor_us"] else "       -"
            print(f"  {row['us']:8.1f} us, floor {floor}, x{row['calls']:.0f} {row['op']:28} {row['kernel'][:50]}")
        sys.stdout.flush()
        results.append(result)
        record.write("timeline", {"limits": limits, "layers": results}, given.out)
    draw(results, given.out / "timeline.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
