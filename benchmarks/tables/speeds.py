"""How fast 2:4 layers, training steps and kernels are, as measured: tables of README and of the performance page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from benchmarks.tables.markdown import table

LAYERS = {
    "gpt2-124m gelu": "GPT-2 124M, GELU 768-3072",
    "gpt2-350m gelu": "GPT-2 350M, GELU 1024-4096",
    "gpt2-774m gelu": "GPT-2 774M, GELU 1280-5120",
    "gpt2-1558m gelu": "GPT-2 1558M, GELU 1600-6400",
    "geglu 1024-2816": "GEGLU 1024-2816",
    "llama-7b swiglu": "Llama 7B, SwiGLU 4096-11008",
    "llama-8b swiglu": "Llama 8B, SwiGLU 4096-14336",
}
"""What ffn.py measures -> what a reader calls it."""


def read(name: str, folder: Path = RESULTS) -> Any:
    """One file of results."""
    return json.loads((folder / f"{name}.json").read_text())


def layers() -> str:
    """Forward and backward of a feed-forward layer, with its peak memory in times of the dense one's."""
    rows = []
    for row in _in_order(read("ffn")["rows"]):
        peak = row["peak_bytes"]["s24"] / row["peak_bytes"]["inductor"]
        rows.append([*_layer(row), f"{peak:.2f}"])
    return table(["Layer, forward and backward", "dense, ms", "2:4, ms", "speed", "memory"], rows)


def everything() -> str:
    """Layers, a block and whole steps in one table."""
    measured = _in_order(read("ffn")["rows"])
    return table(["", "dense, ms", "2:4, ms", "speed"], [*map(_layer, measured), *_steps()])


def speeds_by_name() -> dict[str, float]:
    """The rows of `everything` and their speeds, for a chart."""
    rows = [*map(_layer, _in_order(read("ffn")["rows"])), *_steps()]
    return {row[0]: float(row[-1].strip("*")) for row in rows}


def gradients() -> str:
    """The same layers by the option `gradient`."""
    rows = []
    for row in _in_order(read("ffn")["rows"]):
        speeds = [row["ratios"].get(name) for name in ("s24", "s24 dense dW", "s24 auto dW")]
        rows.append([LAYERS[row["layer"]], *("" if speed is None else f"{speed:.2f}" for speed in speeds)])
    return table(["Layer", '`"mvue"`', '`"dense"`', '`"auto"`'], rows)


def recipes() -> str:
    """The layers that were timed under other recipes than the default."""
    names = {
        "s24": "`fst`",
        "s24 dense dW": "`fst-exact`",
        "s24 down": "`fst-down`",
        "s24 ste": "`ste`",
        "s24 ste mvue-dx": '`ste` with `input_gradient="mvue"`',
    }
    rows = _in_order(read("ffn_options")["rows"])
    body = [[title, *(f"{row['ratios'][name]:.2f}" for row in rows)] for name, title in names.items()]
    return table(["Recipe", *(LAYERS[row["layer"]].partition(",")[0] for row in rows)], body)


def steps() -> str:
    """A block, and whole training steps of nanoGPT."""
    return table(["", "dense, ms", "2:4, ms", "speed"], _steps())


def _layer(row: Mapping[str, Any]) -> list[str]:
    best = min(time for name, time in row["ms"].items() if name.startswith("inductor"))
    return [LAYERS[row["layer"]], _ms(best), _ms(row["ms"]["s24"]), f"**{row['ratio']:.2f}**"]


def _steps() -> list[list[str]]:
    (block,) = read("block")["rows"]
    ms, ratio = block["ms"], block["ratios"]["s24"]
    rows = [["one block of GPT-2 774M", _ms(ms["inductor"]), _ms(ms["s24"]), f"**{ratio:.2f}**"]]
    for row in whole_steps():
        name, ms = f"a training step of nanoGPT {row['size'].upper()}", row["ms"]
        rows.append([name, f"{ms['inductor']:.1f}", f"{ms['s24']:.1f}", f"**{row['ratio']:.2f}**"])
    return rows


def whole_steps() -> list[dict[str, Any]]:
    """Of each size of nanoGPT's own model the row with the faster weight gradient, small sizes first."""
    own = [row for row in read("nanogpt")["rows"] if row["model"] == "nanoGPT" and row["targets"] == "ffn"]
    best: dict[str, dict[str, Any]] = {}
    for row in own:
        if row["size"] not in best or row["ratio"] > best[row["size"]]["ratio"]:
            best[row["size"]] = row
    return sorted(best.values(), key=lambda row: int(row["size"].removesuffix("m")))


def products() -> str:
    """The 2:4 matrix products alone, one row a model: geometric means over its products."""
    shapes = read("gemm")["shapes"]
    rows = []
    for model in dict.fromkeys(shape["model"] for shape in shapes):
        own = [shape for shape in shapes if shape["model"] == model]
        cells = []
        for tokens in (4096, 16384):
            some = [shape for shape in own if tokens in (shape["n"], shape["k"])]
            cells.append(f"{geometric_mean(shape['speedup'] for shape in some):.2f}")
        peers = [shape["cusparselt_speedup"] for shape in own if shape["cusparselt_speedup"]]
        rows.append([model, *cells, f"{geometric_mean(peers):.2f}" if peers else ""])
    return table(["Products of", "4096 tokens", "16384 tokens", "cuSPARSELt, both"], rows)


def memory_bound() -> str:
    """Kernels that memory limits: what share of the copy bandwidth they reach, for cases of 64 MB and more."""
    groups = {
        "pack with given masks": ("pack transposable, given",),
        "pack with a mask search": ("pack transposable, search",),
        "prune by MVUE and pack": ("mvue_pack",),
        "activation and gate, forward": ("glu ",),
        "activation and gate, backward": ("glu_backward ",),
        "masked decay": ("masked_decay_",),
    }
    rows = []
    for title, starts in groups.items():
        cases = [row for row in read("memory_kernels")["rows"] if row["name"].startswith(starts)]
        shares = [row["fraction"] for row in cases if row["bytes"] >= 64e6]
        rows.append(
            [title, f"{100 * min(shares):.0f}%", f"{100 * statistics.median(shares):.0f}%", f"{100 * max(shares):.0f}%"]
        )
    return table(["Kernel", "least", "median", "most"], rows)


def host() -> str:
    """What 2:4 costs the host."""
    times, compiling = read("host_time"), read("compile_time")
    rows = [
        [f"forward of {times['layers']} layers, beside the compiled graph", f"{times['forward_us']:.0f} us"],
        ["optimizer step that holds no sparse weight", f"{times['dense_step_us']:.0f} us"],
        [f"compiling a GPT of {compiling['layers']} layers, against Inductor alone", f"{compiling['ratio']:.2f} times"],
    ]
    return table(["", "on a CPU"], rows)


def measured_on(*names: str) -> str:
    """Where and when some tables were measured, as a line in italics."""
    told = [read(name) for name in names]
    rows = [entry for one in told for entry in (one.get("rows") or [one]) if isinstance(entry, dict)]
    merged = [{**one, **(one.get("machine") or {})} for one in told]
    dates = sorted({row["date"] for row in rows if "date" in row} | {one["date"] for one in merged})
    devices = sorted({str(one.get("device") or one.get("gpu")) for one in merged})
    versions = sorted({str(one["torch"]) for one in merged})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"*{' and '.join(devices)}, torch {' and '.join(versions)}, {when}.*"


def share_of_step(size: str) -> float:
    """Share of a dense training step of nanoGPT that its feed-forward layers take, each as measured alone."""
    depth = {"124m": 12, "350m": 24, "774m": 36}[size]
    (layer,) = (row for row in read("ffn")["rows"] if row["layer"] == f"gpt2-{size} gelu")
    (step,) = (row for row in whole_steps() if row["size"] == size)
    dense = min(time for name, time in layer["ms"].items() if name.startswith("inductor"))
    return float(depth * dense / step["ms"]["inductor"])


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def _in_order(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: list(LAYERS).index(row["layer"]))


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"
