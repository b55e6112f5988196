"""The package as a whole: which module may import which, what an import costs, and how it is found."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import s24compile
from s24compile.kernels.providers import FOLDER_OF
from tests.on_cpu import ON_CPU

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "s24compile"

LEAVES = ("config", "errors", "recipe", "report", "torch_internals", "wrappers")
"""Modules that every package may import. They import each other alone."""

PACKAGES: dict[str, tuple[str, ...]] = {
    "kernels": (),
    "graphs": (),
    "ops": ("kernels",),
    "weights": ("kernels",),
    "tensor": ("ops", "kernels"),
    "passes": ("graphs", "kernels", "weights.operand_request", "weights.sharding"),
    "lowering": ("graphs", "kernels"),
    "training": ("weights",),
    "export": ("tensor", "ops", "weights", "kernels"),
    "integrations": ("weights",),
    "compiler": ("passes", "lowering", "training", "weights", "graphs", "kernels"),
    "demo": ("training", ""),
    "cli": ("demo", "compiler", "training", "kernels", ""),
    "__main__": ("cli",),
}
"""What each package may import beside itself and the leaves; nothing above it. "" is the root: the public names."""

MODULES: dict[str, tuple[str, ...]] = {
    "": ("tensor.saved",),  # see `test_export_from_the_root_only_what_is_public`
    "torch_internals": ("torch_internals",),
    "errors": ("torch_internals",),
    "report": (),
    "recipe": ("errors",),
    "config": ("errors", "recipe", "torch_internals"),
    "wrappers": ("errors", "torch_internals"),
    "graphs.layer": (),
    "graphs.tracing": ("torch_internals",),
    "kernels": ("kernels", "errors", "torch_internals"),  # kernels know no options
    "kernels.format": ("kernels.metadata", "errors"),
    "kernels.metadata": ("kernels.patterns",),
    "kernels.patterns": (),
    "kernels.philox": (),
    "kernels.rounding": ("kernels.scaling",),
    "kernels.scaling": (),
    "passes": ("passes", "kernels.ops", "kernels.format", *PACKAGES["passes"], *LEAVES),
    "tensor.saved": ("tensor",),
    "demo.model": (),
}
"""Modules, and those below a package, that may import less than the row of their package says."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), ast.parse(path.read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of imported modules; `from a import b` gives a.b too where b is a module of this package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                path = ROOT / below.replace(".", "/")
                is_module = below.startswith("s24compile.") and (path.is_dir() or path.with_suffix(".py").is_file())
                yield below if is_module else str(node.module)


def within(name: str, row: str) -> bool:
    return name == row or (row != "" and name.startswith(row + "."))


def allowed_by(name: str) -> tuple[str, ...] | None:
    """What a module may import: by its own row, or by that of its package."""
    rows = [row for row in MODULES if within(name, row)]
    if rows:
        return MODULES[max(rows, key=len)]
    package = name.partition(".")[0]
    return (package, *PACKAGES[package], *LEAVES) if package in PACKAGES else None


def own_imports(tree: ast.Module) -> set[str]:
    return {i.removeprefix("s24compile").lstrip(".") for i in imports(tree) if i.split(".")[0] == "s24compile"}


@pytest.mark.parametrize(("name", "tree"), list(modules()), ids=[name or "root" for name, _ in modules()])
def test_import_only_along_the_arrows(name: str, tree: ast.Module) -> None:
    allowed = allowed_by(name)
    assert allowed is not None, f"{name} has no row in PACKAGES: say what it may import"
    wrong = {i for i in own_imports(tree) if not any(within(i, row) for row in allowed)}
    assert not wrong or name == "", f"{name} imports {sorted(wrong)}, which no arrow allows"


def test_let_no_arrow_between_packages_run_upwards() -> None:
    graphlib.TopologicalSorter({name: [t for t in to if t] for name, to in PACKAGES.items()}).prepare()
    unused = {
        (package, target)
        for package, targets in PACKAGES.items()
        for target in targets
        if not any(within(i, target) for name, tree in modules() if within(name, package) for i in own_imports(tree))
    }
    assert not unused, f"arrows that no module needs: {sorted(unused)}"


@pytest.mark.parametrize(
    "package", ["weights", "training", "compiler", "passes", "lowering", "kernels", "graphs", "torch_internals"]
)
def test_import_modules_of_a_package_without_cycles(package: str) -> None:
    inside = {name: own_imports(tree) for name, tree in modules() if within(name, package)}
    # A package's __init__ may gather what lies below it; those below do not import it.
    arrows = {name: (found & inside.keys()) - {name} for name, found in inside.items()}
    graphlib.TopologicalSorter(arrows).prepare()  # raises CycleError, which names the modules


def test_write_references_with_torch_alone() -> None:
    for name, tree in modules():
        if name.endswith(".reference"):
            foreign = {i.split(".")[0] for i in imports(tree)} - {"s24compile", "torch", "__future__"}
            assert foreign <= sys.stdlib_module_names, f"{name} imports {foreign}"


def is_of_triton(name: str) -> bool:
    return within(name, "kernels.triton") or name.rpartition(".")[2].startswith("triton")


def test_keep_triton_and_cuda_in_files_that_are_named_so() -> None:
    for name, tree in modules():
        at_import = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
        for imported in imports(at_import):
            if imported.split(".")[0] in ("triton", "cutlass_library"):
                assert is_of_triton(name), f"{name} imports {imported} when it is imported itself"
            if ".triton" in imported:
                assert is_of_triton(name), f"{name} imports {imported} whether it is chosen or not"


def op_folder(name: str) -> str | None:
    """The folder of kernels/ that a module belongs to, if ops live there."""
    parts = name.split(".")
    return parts[1] if len(parts) > 2 and parts[0] == "kernels" and parts[1] in set(FOLDER_OF.values()) else None


def test_share_between_ops_only_what_has_a_home_of_its_own() -> None:
    for name, tree in modules():
        for imported in own_imports(tree) if op_folder(name) and not name.endswith(".reference") else ():
            folder = op_folder(imported)
            assert folder in (None, op_folder(name)), (
                f"{name} imports {imported}, which is another op's: what both use belongs in kernels/triton/, "
                "kernels/cusparselt/ or in a leaf of kernels/"
            )


def test_import_no_reference_into_a_kernel() -> None:
    for name, tree in modules():
        for imported in own_imports(tree) if op_folder(name) or within(name, "kernels.triton") else ():
            if imported.endswith(".reference"):
                # A reference may be spelled in others; a kernel that needs their arithmetic finds it in a leaf.
                assert name.endswith(".reference"), f"{name} imports {imported}"


def test_keep_terminal_and_plot_libraries_in_the_command_line() -> None:
    for name, tree in modules():
        used = {i.split(".")[0] for i in imports(tree)} & {"rich", "typer", "matplotlib"}
        assert not used or within(name, "cli") or name == "demo.plot", f"{name} imports {used}"


def test_export_from_the_root_only_what_is_public() -> None:
    assert set(s24compile.__all__) <= set(dir(s24compile))
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert not [i for i in imports(tree) if within(i, "s24compile.cli") or within(i, "s24compile.demo")]


def test_register_the_backend_as_an_entry_point() -> None:
    points = importlib.metadata.entry_points(group="torch_dynamo_backends")
    assert "s24" in points.names, 'not registered: install the package, or run "make test PYTHON=..." once'
    for _ in range(2):  # whoever loads it leaves the name to torch
        assert callable(points["s24"].load())
        assert callable(torch._dynamo.lookup_backend("s24"))


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ON_CPU, check=True, capture_output=True, text=True
    ).stdout


def test_import_without_dynamo_and_in_a_few_ms() -> None:
    code = (
        "import torch, time, sys; before = time.process_time(); import s24compile; "
        "took = time.process_time() - before; s24compile.ops.flip_rate; "  # the functional API needs no compiler either
        "print(took, 'torch._dynamo' in sys.modules, 'torch._inductor' in sys.modules)"
    )
    seconds = []
    for _ in range(3):
        took, dynamo, inductor = run_python(code).split()
        # These two are what would make it slow: 0.6 s and 0.4 s.
        assert (dynamo, inductor) == ("False", "False"), "importing s24compile imports the compiler"
        seconds.append(float(took))
    # The bar is 5 ms (1.5 were measured); CPU time on a busy machine varies by a factor of four.
    assert min(seconds) < 0.02


def test_train_on_a_cpu_without_triton_or_cuda() -> None:
    code = """
import sys

class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "cutlass_library"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTriton())
import torch
net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16))
compiled = torch.compile(net, backend="s24", options={"inner": "aot_eager", "target": "cpu"})
compiled(torch.randn(8, 16)).sum().backward()
import s24compile
assert len(s24compile.sparse_weights(net)) == 2
print([m for m in sys.modules if m.startswith("s24compile.") and ("triton" in m or "cutlass" in m)])
print(torch.cuda.is_initialized())
"""
    assert run_python(code).split() == ["[]", "False"]


def test_agree_on_versions_and_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "s24compile"
    assert importlib.metadata.version("s24compile") == s24compile.__version__
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for tool in project["optional-dependencies"]["lint"]:
        name, version = tool.split("==")
        assert pinned[name] == version, f"{name} is pinned twice and differently"
    for name, version in re.findall(r"(\w+)==([\d.]+)", (ROOT / ".pre-commit-config.yaml").read_text()):
        assert pinned[name] == version, f"{name} is pinned twice and differently"


def test_put_the_whole_repository_into_the_sdist(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout, so nothing says what is in the repository")
    tracked = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    code = "import setuptools; setuptools.setup()"
    subprocess.run([sys.executable, "-c", code, "-q", "egg_info"], cwd=tmp_path, check=True, capture_output=True)
    packed = set((tmp_path / "s24compile.egg-info/SOURCES.txt").read_text().splitlines())
    assert set(tracked) - packed == {".gitignore"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_install_what_a_target_asks_for_on_top_of_what_is_there(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()

    def make(*words: str) -> str:
        return subprocess.run(["make", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    assert "pip install" in make("-n", "test")
    make("--touch", "test")  # as if it were installed
    assert "pip install" not in make("-n", "test")
    assert ".[test,docs]" in make("-n", "docs", "EXTRAS=test,docs")
