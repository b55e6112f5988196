"""Which kernels the time of a training step goes to, and which of them make two ways to compute a step differ.

The GPU's timeline of a few steps, by torch.profiler: each kernel belongs to a part of the step by its name, and what no
kernel covers is idle time. Parts and idle time add up to the step, so that the differences of two ways explain the
difference of their step times to the microsecond.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PARTS: tuple[tuple[str, str], ...] = (
    ("2:4 products", r"Sparse|sparse_gemm|s24_(mm|gemm)"),
    ("packing and masks", r"pack_blocks|pack_many|pack_rows|pack_transposable|pack_magnitude|search|count_differences"),
    ("MVUE packing", r"mvue|sample_pack|pack_sampled"),
    ("masked decay", r"decay_(one|many)"),
    ("attention", r"flash|fmha|attention|softmax|efficient"),
    ("optimizer", r"multi_tensor_apply|FusedAdam|adam"),
    ("dense products", r"nvjet|gemm|cutlass|cublas|xmma|splitK|s16816|wgmma"),
    ("Inductor's fused kernels", r"^triton_"),
    ("copies and fills", r"Memcpy|Memset|copy_kernel|FillFunctor|direct_copy"),
)
"""Part of a step -> what the names of its kernels look like; the first that matches counts."""
OTHER, IDLE = "other kernels", "idle"


@dataclasses.dataclass
class StepProfile:
    """Microseconds of one step, on the mean of the steps profiled."""

    step_us: float
    kernels: dict[str, tuple[float, float]]
    """Kernel name -> (microseconds, launches) a step."""

    @property
    def parts(self) -> dict[str, float]:
        """Microseconds of each part; with "idle", which no kernel covers, they add up to the step."""
        sums: dict[str, float] = {}
        for name, (us, _) in self.kernels.items():
            sums[part_of(name)] = sums.get(part_of(name), 0.0) + us
        # Kernels of two streams may overlap: idle time is then less than nothing, and says how much.
        return sums | {IDLE: self.step_us - sum(sums.values())}


def part_of(kernel: str) -> str:
    """The part of a step that a kernel belongs to."""
    return next((part for part, pattern in PARTS if re.search(pattern, kernel)), OTHER)


def profile_steps(step: Callable[[int], Any], steps: int = 4) -> StepProfile:
    """Profiles `step(0)`, `step(1)`, ...; it must have run before, so that nothing is compiled here."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        for number in range(steps):
            step(number)
        torch.cuda.synchronize()
    ran = [event for event in prof.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels: dict[str, tuple[float, float]] = {}
    for event in ran:
        us, launches = kernels.get(event.name, (0.0, 0.0))
        kernels[event.name] = (us + event.time_range.elapsed_us() / steps, launches + 1 / steps)
    span = max(event.time_range.end for event in ran) - min(event.time_range.start for event in ran)
    return StepProfile(span / steps, kernels)


def difference(base: StepProfile, other: StepProfile) -> list[dict[str, Any]]:
    """A row a part, largest difference first: microseconds in both, and what `other` takes more."""
    parts = dict.fromkeys([*base.parts, *other.parts])
    rows = []
    for part in parts:
        before, after = base.parts.get(part, 0.0), other.parts.get(part, 0.0)
        rows.append({"part": part, "base_us": before, "other_us": after, "more_us": after - before})
    return sorted(rows, key=lambda row: -abs(row["more_us"]))


def report(names: Sequence[str], base: StepProfile, other: StepProfile, most: int = 14) -> str:
    """The parts of two steps side by side, and the kernels of the second that take longest."""
    rows = difference(base, other)
    lines = [f"{'':28}{names[0]:>14}{names[1]:>14}{'difference':>14}   (us a step)"]
    lines += [f"{r['part']:28}{r['base_us']:14.0f}{r['other_us']:14.0f}{r['more_us']:+14.0f}" for r in rows]
    total = other.step_us - base.step_us
    lines.append(f"{'step':28}{base.step_us:14.0f}{other.step_us:14.0f}{total:+14.0f}")
    longest = sorted(other.kernels.items(), key=lambda item: -item[1][0])[:most]
    lines += [f"  {us:9.0f} us x{count:5.1f}  {part_of(name):26} {name[:70]}" for name, (us, count) in longest]
    return "\n".join(lines)


def as_json(told: StepProfile) -> dict[str, Any]:
    """For a result file: parts, and every kernel that takes a thousandth of the step or more."""
    kernels = [
        {"kernel": name[:120], "us": round(us, 1), "launches": round(count, 2)}
        for name, (us, count) in sorted(told.kernels.items(), key=lambda item: -item[1][0])
        if us >= told.step_us / 1000
    ]
    return {"step_us": told.step_us, "parts": told.parts, "kernels": kernels}
