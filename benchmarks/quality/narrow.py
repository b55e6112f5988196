"""The width at which a dense model takes as long per step as a 2:4 one: the rival at equal wall clock.

    python -m benchmarks.quality.narrow --size 30m --like fst-l10,ste-mvue-dx --also dense,half

Prints, per variant, its sparse step time and the hidden width to train as `narrow=WIDTH`, and keeps all step times in
the runs' folder, where `report.py` finds them. Nothing else may run on the GPU meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.quality import corpus as corpora
from benchmarks.quality.plan import Plan
from benchmarks.quality.results import TIMES, Result, Speed, read_times, speed_of
from benchmarks.quality.run import train
from benchmarks.quality.sizes import SIZES
from benchmarks.quality.variants import Variant, variant


def width_of_time(wanted_ms: float, measure: Callable[[int], float], full: int, multiple: int = 64) -> int:
    """The largest hidden width, a multiple of `multiple`, whose step takes at most `wanted_ms`; by bisection.

    Args:
        measure: step time in ms of a dense model of a hidden width; assumed to grow with it.
        full: the widest model asked about.
    """
    if measure(full) <= wanted_ms:
        return full
    low, high = 0, full // multiple
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle * multiple) <= wanted_ms else (low, middle)
    return max(low, 1) * multiple


def step_ms(plan: Plan, corpus: corpora.Corpus, device: str) -> tuple[Speed, float]:
    """Mean time of a step without compilation, sparse if the variant ever is, and what it is the time of."""
    with tempfile.TemporaryDirectory() as folder:
        train(plan, corpus, Path(folder), device, float("inf"))
        header, *lines = map(json.loads, (Path(folder) / f"{plan.file_name}.jsonl").read_text().splitlines())
    result, sparse = Result(header, lines), header["options"] is not None
    found = result.step_ms(sparse=sparse)
    assert found is not None, "all windows held a compilation"
    return speed_of(header, sparse=sparse), found


def keep(times: Mapping[Speed, float], file: Path) -> None:
    """Adds step times to the file, in place of older ones of the same kind."""
    merged = read_times(file) | dict(times)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps([{"speed": speed, "step_ms": ms} for speed, ms in merged.items()], indent=1) + "\n")


def main() -> None:
    """Measures, and prints one line of JSON per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="30m")
    parser.add_argument("--like", default="fst-l10,ste-mvue-dx", help="variants to find the width for")
    parser.add_argument("--also", default="", help="variants whose step time is wanted, and no more")
    parser.add_argument("--out", type=Path, default=Path("out/quality/runs"))
    parser.add_argument("--corpus", type=Path, default=Path("out/quality/bytes"))
    parser.add_argument("--steps", type=int, default=120, help="of each measurement; 20 of them are thrown away")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags = parser.parse_args()
    corpus, size = corpora.load(flags.corpus), SIZES[flags.size]

    def plan(what: Variant) -> Plan:
        # Sparse all the time, and validated once at the end.
        always = dataclasses.replace(what, head=0.0, tail=0.0, length=1.0)
        return Plan(flags.size, size, always, flags.steps, validate_every=flags.steps)

    known: dict[str, float] = {}

    def time_of(name: str) -> float:
        if name not in known:
            speed, known[name] = step_ms(plan(variant(name)), corpus, flags.device)
            keep({speed: known[name]}, flags.out / TIMES)
            print(json.dumps({"variant": name, "step_ms": known[name]}), flush=True)
        return known[name]

    for name in filter(None, flags.also.split(",")):
        time_of(name)
    for name in filter(None, flags.like.split(",")):
        wanted = time_of(name)
        width = width_of_time(wanted, lambda hidden: time_of(f"narrow={hidden}"), 4 * size.n_embd)
        print(json.dumps({"like": name, "step_ms": wanted, "narrow": width}), flush=True)


if __name__ == "__main__":
    main()
