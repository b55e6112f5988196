"""The parts of pages that are made, not written: graphs, refusals and measurements. A hook of mkdocs.

A comment `<!-- made: NAME WORDS -->` in a page becomes what the function of that name in `BLOCKS` makes of the words,
each time the site is built: `make docs`. Nothing that is made is committed, so nothing of it can be out of date.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
QUALITY = RESULTS / "quality.json"
MARK = re.compile(r"<!-- made: ([\w-]+)\s*(.*?)\s*-->", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs: fills the marks of one page."""
    return MARK.sub(lambda mark: BLOCKS[mark[1]](mark[2]), markdown)


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: pictures that lie outside of docs/, and one that is drawn now, are part of the site."""
    from mkdocs.structure.files import File

    from benchmarks.tables.charts import speed_chart

    for picture in (*RESULTS.rglob("*.png"), ROOT / "assets" / "demo.png"):
        if picture.exists():
            uri = f"pictures/{picture.name}"
            files.append(File.generated(config, uri, abs_src_path=str(picture)))
    files.append(File.generated(config, "pictures/speeds.png", content=speed_chart()))
    return files


def stages() -> dict[str, str]:
    """The graph of one SwiGLU layer at each stage, lowered for sm_90 by a machine that need not have a GPU."""
    import pytest
    import torch
    import torch.nn.functional as functional
    from torch import nn

    import s24compile.compiler.sparse_graph
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
    patch.setattr(s24compile.compiler.sparse_graph, tracing.trace_graph.__name__, keep)
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


def refusals(_: str) -> str:
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


def table_of(kind: str, words: str) -> str:
    """A table of speeds with where and when it was measured: the name of a function of benchmarks.tables.speeds, then
    the files of benchmarks/results that it is made of."""
    from benchmarks.tables import speeds

    return f"{getattr(speeds, kind)()}\n\n{speeds.measured_on(*words.split())}"


def figure(words: str) -> str:
    """One number: a file of benchmarks/results, the way to the number in it, a format."""
    name, way, form = words.split()
    found: Any = json.loads((RESULTS / f"{name}.json").read_text())
    for key in way.split("/"):
        found = found[key]
    return format(found, form)


def gaps(text: str) -> str:
    """A table of losses: experiments on the first line, then `what a reader calls it = variant`."""
    from benchmarks.tables import losses

    columns, *rows = text.strip().splitlines()
    named = dict(row.rsplit(" = ", 1) for row in rows)
    return losses.gaps(named, [losses.experiment(word) for word in columns.split()])


def choices(_: str) -> str:
    """README's table of recipes: time and loss of each."""
    from benchmarks.tables.readme import loss_table

    return loss_table()


def loss_pictures(words: str) -> str:
    """Pictures of experiments ("30m/6000"), of those that have one; "longest" takes the longest of the 26M model."""
    from benchmarks.tables import losses

    told = {(one["size"], one["steps"]): one for one in losses.tables() if one["picture"]}
    longest = max((experiment for experiment in told if experiment[0] == "30m"), key=lambda found: found[1])
    wanted = [longest if word == "longest" else losses.experiment(word) for word in words.split()]
    return "\n\n".join(
        f"![Loss over that of the dense run: {losses.title(one)}](pictures/{told[one]['picture']})" for one in wanted
    )


def all_runs(_: str) -> str:
    """A table for each model size and length that was trained."""
    from benchmarks.tables import losses

    sections = []
    for told in losses.tables():
        text = f"{told['corpus']['bytes'] / 1e6:.0f} MB of text"
        where = f"*{' and '.join(told['devices'])}, torch {told['torch']}, {told['date']}; {text}*"
        title = losses.title((told["size"], told["steps"]))
        sections.append("\n".join([f"## {title}", "", where, "", losses.every_run(told)]))
    return "\n\n".join(sections)


def decay_searches(_: str) -> str:
    """What `tune_decay` found on the benchmark's models."""
    from benchmarks.tables import losses
    from benchmarks.tables.markdown import table

    sections = []
    for found in json.loads(QUALITY.read_text())["decay_searches"]:
        title = f"{losses.title((found['size'], found['steps']))}: {found['advice']}."
        mu = [[f"{float(decay):g}", f"{value:.2f}"] for decay, value in found["mu"].items()]
        sections.append("\n".join([title, "", table(["decay", "mu"], mu)]))
    return "\n\n".join(sections)


def demo(_: str) -> str:
    """The picture of `make demo`, where one is committed."""
    there = (ROOT / "assets" / "demo.png").exists()
    return "![Loss of a small GPT trained dense and 2:4](pictures/demo.png)" if there else ""


BLOCKS: dict[str, Callable[[str], str]] = {
    "graph": graph,
    "demo": demo,
    "refusals": refusals,
    "layers": functools.partial(table_of, "layers"),
    "gradients": functools.partial(table_of, "gradients"),
    "recipe-speeds": functools.partial(table_of, "recipes"),
    "steps": functools.partial(table_of, "steps"),
    "products": functools.partial(table_of, "products"),
    "memory-bound": functools.partial(table_of, "memory_bound"),
    "host": functools.partial(table_of, "host"),
    "figure": figure,
    "gaps": gaps,
    "choices": choices,
    "loss-pictures": loss_pictures,
    "all-runs": all_runs,
    "decay-searches": decay_searches,
}
