"""`s24 bench`: runs the scripts of benchmarks/, each of which checks its result first and then times it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from s24compile.errors import ModelError


def command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Benchmarks to run; all that this machine can run if none.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the benchmarks and stop.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Folder of the scripts; default: that of this checkout.")] = None,
) -> None:
    """Run benchmarks. Results are printed and written as JSON to benchmarks/results/, with machine, versions and date.

    The scripts lie in the repository, not in the installed package: run this in a checkout.
    """
    scripts = find_scripts(folder)
    if listing:
        for name, path in scripts.items():
            typer.echo(f"{name:20} {headline(path)}")
        return
    for name in names or ():
        if name not in scripts:
            raise ModelError(
                what=f"benchmark {name!r}", found="no such script", accepted=f"there are {', '.join(scripts)}"
            )
    failed = []
    for name in names or [name for name, path in scripts.items() if _fits(path)]:
        typer.echo(f"== {name}: {headline(scripts[name])}")
        if subprocess.run([sys.executable, str(scripts[name])], check=False).returncode:
            failed.append(name)
    if failed:
        typer.echo(f"s24: failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def find_scripts(folder: Path | None) -> dict[str, Path]:
    """Benchmarks by name, in alphabetical order.

    Raises:
        ModelError: there is no folder of benchmarks, as beside an installed wheel.
    """
    here = folder or Path(__file__).parents[2] / "benchmarks"
    scripts = {path.stem: path for path in sorted(here.glob("[!_]*.py")) if _is_script(path)}
    if not scripts:
        raise ModelError(what=str(here), found="no benchmarks", accepted="run in a checkout, or name it with --folder")
    return scripts


def headline(path: Path) -> str:
    """First line of a script's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def _is_script(path: Path) -> bool:
    return '__name__ == "__main__"' in path.read_text()


def _fits(path: Path) -> bool:
    """Whether this machine can run it: a script that needs a GPU says so with `NEEDS_GPU = True`."""
    import torch

    tree = ast.parse(path.read_text())
    assigned = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)]
    needs = any(getattr(n.targets[0], "id", "") == "NEEDS_GPU" and n.value.value for n in assigned)  # type: ignore[attr-defined]
    return torch.cuda.is_available() or not needs
