"""The parts of pages that are made, not written: graphs, refusals and measurements. A hook of mkdocs.

A line `<!-- made: NAME -->` in a page becomes what the function of that name in `BLOCKS` returns, each time the site is
built: `make docs`. Nothing that is made is committed, so nothing of it can be out of date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUALITY = RESULTS / "quality.json"
MARK = re.compile(r"<!-- made: ([\w-]+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs: fills the marks of one page."""
    return MARK.sub(lambda mark: BLOCKS[mark[1]](), markdown)


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: pictures that lie outside of docs/ are part of the site."""
    from mkdocs.structure.files import File

    for picture in (*RESULTS.rglob("*.png"), ROOT / "assets" / "demo.png"):
        if picture.exists():
            uri = f"pictures/{picture.name}"
            files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def stages() -> dict[str, str]:
    """The graph of one SwiGLU layer at each stage, lowered for sm_90 by a machine that need not have a GPU."""
    import pytest
    import torch
    import torch.nn.functional as functional
    from torch import nn

    import s24compile.compiler.backend
    from s24compile.graphs import tracing
    from s24compile.kernels.target import Target
    from tests.graphs import captured_lowerings

    class SwiGLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1, self.w3 = nn.Linear(64, 256, bias=False), nn.Linear(64, 256, bias=False)
            self.w2 = nn.Linear(256, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.w2(functional.silu(self.w1(x)) * self.w3(x))

    found: dict[str, str] = {}

    def keep(stage: str, text: Callable[[], str]) -> None:
        found[stage] = text()

    torch._dynamo.reset()
    model, x = SwiGLU().bfloat16(), torch.randn(128, 64, dtype=torch.bfloat16, requires_grad=True)
    patch = pytest.MonkeyPatch()
    patch.setattr(s24compile.compiler.backend, tracing.trace_graph.__name__, keep)
    with patch.context(), captured_lowerings(patch, Target.parse("sm_90")) as lowered:
        torch.compile(model, backend="s24", options={"inner": "aot_eager"})(x).sum().backward()
    patch.undo()
    found["forward"], found["backward"] = lowered
    return found


def graph(stage: str) -> str:
    """One graph of `stages` as a block of code, long lists of arguments and repeated inputs left out."""
    if not _STAGES:
        _STAGES.update(stages())
    lines = [line.rstrip() for line in _STAGES[stage].splitlines()]
    return "\n".join(["```text", *lines, "```"])


_STAGES: dict[str, str] = {}


def refusals() -> str:
    """A table of what is refused, each with the sentence that `explain` gives: the models are those of the tests."""
    import torch
    from torch import nn

    import s24compile
    from tests.ffn_lookalikes import REFUSED

    models: dict[str, nn.Module] = {name: layer.make() for name, layer in REFUSED.items()}
    models["odd_width"] = nn.Sequential(nn.Linear(32, 30), nn.GELU(), nn.Linear(30, 32))
    models["half_of_a_layer_with_odd_output"] = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 10))
    lines = ["| What | Reason |", "| --- | --- |"]
    for name, model in models.items():
        torch._dynamo.reset()
        for site in s24compile.explain(model, torch.randn(2, 8, 32)).sites[:1]:
            reason = re.sub(r" \([^()]*\.py:\d+\)", "", site.reason)
            title = name.replace("act_", "activation ").replace("_", " ")
            lines.append(f"| {title} | {site.status}: {reason} |")
    return "\n".join(lines)


def performance() -> str:
    """A section for each result that exists: where and when it was measured, its rows, its chart."""
    files = sorted(set(RESULTS.glob("*.json")) - {QUALITY})
    sections = [_section(path) for path in files]
    return "\n\n".join(sections) or "No results are committed yet."


def _section(path: Path) -> str:
    told: dict[str, Any] = json.loads(path.read_text())
    told |= told.get("machine") or {}
    dated = any("date" in row for row in told.get("rows") or [] if isinstance(row, dict))  # each row by itself
    where = ", ".join(
        f"{name} {told[key]}" if name else str(told[key])
        for key, name in (("device", ""), ("gpu", ""), ("torch", "torch"), ("cuda", "CUDA"), ("date", ""))
        if told.get(key) and not (dated and key == "date")
    )
    title = path.stem.replace("_", " ")
    lines = [f"### {title[0].upper()}{title[1:]}", "", f"*{where or 'circumstances not recorded'}*", ""]
    rows = told.get("rows") or told.get("shapes") or told.get("layers")
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        lines += _table([_flat(row) for row in rows])
    else:
        rest = {k: v for k, v in _flat(told).items() if k not in ("benchmark", "date", "device", "python", "torch")}
        lines += ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rest.items())]
    if path.with_suffix(".png").exists():
        lines += ["", f"![{title}](pictures/{path.stem}.png)"]
    return "\n".join(lines)


def _table(rows: list[dict[str, str]]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    body = (f"| {' | '.join(row.get(name, '') for name in names)} |" for row in rows)
    return [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}", *body]


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested numbers as columns "ms inductor"; lists (single rounds) are left out."""
    found: dict[str, str] = {}
    for name, value in row.items():
        if name == "all_us":  # of every competitor: too wide a table
            continue
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name} ")
        elif not isinstance(value, list) and value is not None:
            found[f"{prefix}{name}"] = f"{value:.4g}" if isinstance(value, float) else str(value)
    return found


def quality() -> str:
    """A table of losses and a picture for each model size and length that was trained, then the decay searches."""
    measured = json.loads(QUALITY.read_text())
    sections = []
    for told in measured["tables"]:
        title = f"### {told['size'].upper()}, {told['steps']} steps"
        devices, text = ", ".join(told["devices"]), f"{told['corpus']['bytes'] / 1e6:.0f} MB of text"
        where = f"*{devices}, torch {told['torch']}, {told['date']}; {text}*"
        rows = [
            {
                "variant": row["variant"],
                "F": str(row["hidden"]),
                "loss": f"{row['loss']:.4f}",
                "gap": "" if row["gap"] is None else f"{row['gap']:+.4f}",
                "ends 2:4": "yes" if row["ends_sparse"] else "",
            }
            for row in told["rows"]
        ]
        picture = f"![losses](pictures/{told['picture']})"
        sections.append("\n".join([title, "", where, "", *_table(rows), "", picture]))
    for found in measured["decay_searches"]:
        title = f"### The decay that `tune_decay` chose: {found['size'].upper()}, {found['steps']} steps"
        mu = [{"decay": decay, "mu": f"{value:.2f}"} for decay, value in found["mu"].items()]
        sections.append("\n".join([title, "", *_table(mu), "", f"*{found['advice']}*"]))
    return "\n\n".join(sections)


def demo() -> str:
    """The picture of `make demo`, where one is committed."""
    there = (ROOT / "assets" / "demo.png").exists()
    return "![Loss of a small GPT trained dense and 2:4](pictures/demo.png)" if there else ""


BLOCKS: dict[str, Callable[[], str]] = {
    "graph-captured": lambda: graph("captured"),
    "graph-rewritten": lambda: graph("rewritten"),
    "graph-forward": lambda: graph("forward"),
    "graph-backward": lambda: graph("backward"),
    "demo": demo,
    "refusals": refusals,
    "performance": performance,
    "quality": quality,
}
