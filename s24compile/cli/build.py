"""`s24 build`: compiles the CUTLASS kernels ahead of time, so that the first training step does not."""

from __future__ import annotations

import json as writer
from typing import Annotated

import typer


def command(
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compilers at a time; default: as cores and memory allow.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the kernels and whether they are built, then stop.")
    ] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="The kernels of training in fp8 instead of bf16's.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Compile the Hopper kernels (sm_90a) now and keep them in the cache.

    Needs nvcc and CUTLASS's headers, no GPU; `s24 doctor` says whether they are here. A kernel takes about a minute.
    """
    from s24compile.kernels.gemm.cutlass import build, objects, tools

    kernels = build.default_kernels(narrow=fp8)
    if listing:
        built = {kernel.name: objects.object_path(kernel) for kernel in kernels}
        if json:
            typer.echo(writer.dumps({name: path and str(path) for name, path in built.items()}, indent=1))
        else:
            typer.echo("\n".join(f"{name}  {path or 'not built'}" for name, path in built.items()))
        return
    from s24compile.cli.progress import build_progress
    from s24compile.cli.terminal import console

    tools.require_tools()
    terminal = console(json=json)
    with build_progress(terminal) as progress:
        task = progress.add_task("kernels", total=len(kernels), name="")
        build.build_all(kernels, lambda done, total, name: progress.update(task, completed=done, name=name), jobs)
    terminal.print(f"{len(kernels)} kernels in {objects.output_path()}")
    if json:
        typer.echo(writer.dumps({kernel.name: str(objects.object_path(kernel)) for kernel in kernels}, indent=1))
