"""What the docs tell people to type is what works: every block of bash and Python on every page is run, in order.

Unless a comment above it says so: `<!-- not run: why -->`, `<!-- needs a GPU -->`, `<!-- run by tests/... -->`.
README.md has its own test, test_readme.py; export.md and toolkit.md have test_export.py and test_toolkit.py.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from s24compile.cli import main
from tests.on_cpu import ON_CPU
from tests.test_examples import EXAMPLES, RUNS, need

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"export.md": "test_export.py", "toolkit.md": "test_toolkit.py"}
PAGES_NEED = {"trainers.md": ("transformers", "accelerate", "lightning"), "zoo.md": ("transformers", "accelerate")}
PAGES = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if path.name not in ELSEWHERE]
BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(bash|python)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass
class Block:
    mark: str
    language: str
    title: str
    text: str

    @property
    def runs_here(self) -> bool:
        return not self.mark.startswith(("not run:", "needs a GPU", "run by"))


def blocks(page: str) -> list[Block]:
    text = (ROOT / "docs" / page).read_text()
    found = [Block(mark, language, rest, body) for mark, language, rest, body in BLOCK.findall(text)]
    assert len(found) == len(re.findall(r"^```(?:bash|python)", text, re.MULTILINE)), "a block is not understood"
    return found


def names_for(page: str) -> dict[str, Any]:
    """What a page takes for granted: the model and loop that its reader has."""
    if page != "recipes.md":
        return {}
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    compiled = torch.compile(model, backend="s24", options={"inner": "eager"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train_step(i: int) -> torch.Tensor:
        loss = compiled(torch.randn(8, 16, generator=torch.Generator().manual_seed(i))).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    class SummaryWriter:
        def add_scalar(self, *_: Any) -> None: ...

    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return {
        "model": model, "optimizer": optimizer, "train_step": train_step, "scheduler": scheduler,
        "SummaryWriter": SummaryWriter, "s24compile": importlib.import_module("s24compile"),
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_run_every_block(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    need(*PAGES_NEED.get(page, ()))
    names = names_for(page)
    # What a page sets for good is put back afterwards.
    with torch._dynamo.config.patch(optimize_ddp=torch._dynamo.config.optimize_ddp):
        run_blocks([block for block in blocks(page) if block.runs_here], names, tmp_path)


def run_blocks(found: list[Block], names: dict[str, Any], folder: Path) -> None:
    for number, block in enumerate(found):
        if block.language == "bash":
            for line in block.text.splitlines():
                run_command(line)
            continue
        title = re.search(r'title="([^"]+)"', block.title)
        file = folder / (title[1] if title else f"block{number}.py")
        file.write_text(block.text)
        torch._dynamo.reset()
        # A file, so that classes have source lines; one namespace, so that a page can go on where it stopped.
        exec(compile(block.text, str(file), "exec"), names)


def run_command(line: str) -> None:
    words = shlex.split(line, comments=True)
    if not words:
        return
    if words[0] == "s24":
        if words[1] == "train":
            # The same command, smaller: what is on the line is parsed, then fewer and smaller steps win.
            words += ["--max_iters=2", "--n_layer=1", "--n_embd=32", "--inner=aot_eager", "--device=cpu"]
        # doctor fails where something that this machine should have is missing; that is its answer.
        assert main(words[1:]) in ((0, 1) if words[1] == "doctor" else (0,)), line
        return
    if words[0] == "python" and words[1].split("/")[1] in {name for name, *_ in EXAMPLES}:
        # test_examples.py runs just this.
        assert words[2:6] == ["--steps", "8", "--layers", "1"]
        assert tuple(words[6:]) in {flags for *_, flags in RUNS}
        return
    command = re.sub(r"(^|\s)s24 ", rf"\1{sys.executable} -m s24compile ", line)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**ON_CPU, "PATH": path}, capture_output=True)


def test_have_a_reason_for_what_is_not_run() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.mark.startswith("run by"):
                for file in re.findall(r"tests/\S+\.py", block.mark):
                    assert block.text.split("\n")[0] in (ROOT / file).read_text() + (ROOT / "README.md").read_text()


def test_build_the_site_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip('mkdocs-material is not installed: pip install -e ".[docs]"')
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    how = (tmp_path / "how-it-works" / "index.html").read_text()
    assert "s24.glu" in how
    assert "cutlass" in how, "the graphs are lowered for a GPU"
    assert "none of gelu" in (tmp_path / "refused" / "index.html").read_text()
    assert "made:" not in how
    performance, quality = ((tmp_path / page / "index.html").read_text() for page in ("performance", "quality"))
    assert "forward_error" not in performance
    assert "pictures/speeds.png" in performance
    assert (tmp_path / "pictures" / "speeds.png").read_bytes().startswith(b"\x89PNG")
    assert quality.index("The answer") < quality.index("fst-down") < quality.index("<h2")
    api = (tmp_path / "api" / "index.html").read_text()
    assert "mask_interval" in api
    assert "transposable_mask" in api


CITED = re.compile(r"\b(docs/[\w-]+\.md|[A-Z]+\.md)\b|\b(?:MATH|HOPPER|CATALOGUE|DESIGN) (?:section )?\d")


def test_cite_pages_that_are_in_the_repository() -> None:
    folders = ("s24compile", "benchmarks", "tests", "examples")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    missing = {
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in sources
        for found in CITED.finditer(path.read_text())
        if not found[1] or not any((folder / found[1]).is_file() for folder in (ROOT, path.parent))
    }
    assert not missing


def test_name_files_that_are_in_the_repository() -> None:
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {(page.name, name) for page in pages for name in re.findall(r"`([\w/]+/[\w.]+\.py)`", page.read_text())}
    assert named
    folders = (ROOT, ROOT / "s24compile")
    missing = [pair for pair in named if not any((folder / pair[1]).is_file() for folder in folders)]
    assert not missing


def test_put_every_page_into_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    assert not [path.name for path in (ROOT / "docs").glob("*.md") if f": {path.name}\n" not in nav]
