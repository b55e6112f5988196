"""`s24 bench`: runs the scripts of benchmarks/, each of which checks its result first and then times it."""

from __future__ import annotations

import ast
import json as writer
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from s24compile.errors import ModelError, OptionError

STDERR = 2


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Benchmarks to run; if none, all that run here. One may be given its own options."),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the benchmarks and stop.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Folder of the scripts; default: that of this checkout.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON; what the scripts print goes to stderr.")] = False,
) -> None:
    """Run benchmarks. Results are printed and written as JSON to benchmarks/results/, with machine, versions and date.

    The scripts lie in the repository, not in the installed package: run this in a checkout.

    Example: `s24 bench gemm --tune`
    """
    scripts = find_scripts(folder)
    names, own = _split(names or [])
    if listing:
        if json:
            rows = [{"name": n, "about": headline(path), "runs_here": _fits(path)} for n, path in scripts.items()]
            typer.echo(writer.dumps(rows, indent=1))
        else:
            typer.echo("\n".join(f"{name:20} {headline(path)}" for name, path in scripts.items()))
        return
    for name in names:
        if name not in scripts:
            raise ModelError(
                what=f"benchmark {name!r}", found="no such script", accepted=f"there are {', '.join(scripts)}"
            )
    statuses = {}
    for name in names or [name for name, path in scripts.items() if _fits(path)]:
        typer.echo(f"== {name}: {headline(scripts[name])}", err=json)
        command = [sys.executable, str(scripts[name]), *own]
        statuses[name] = subprocess.run(command, check=False, stdout=STDERR if json else None).returncode
    if json:
        typer.echo(writer.dumps(statuses, indent=1))
    failed = [name for name, status in statuses.items() if status]
    if failed:
        typer.echo(f"s24: failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Names of benchmarks, and from the first option on what is meant for the one that is named."""
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, own = words[:first], words[first:]
    if own and len(names) != 1:
        raise OptionError(
            name="bench", value=" ".join(own), accepted="a script's options need one benchmark before them"
        )
    return names, own


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
