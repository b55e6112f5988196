"""`s24 build`: compiles the CUTLASS kernels ahead of time, so that the first training step does not."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Compilers at a time; default: as cores and memory allow.")
    ] = None,
    listing: Annotated[
        bool, typer.Option("--list", help="List the kernels and whether they are built, then stop.")
    ] = False,
) -> None:
    """Compile the Hopper kernels (sm_90a) now and keep them in the cache.

    Needs nvcc and CUTLASS's headers, no GPU; `s24 doctor` says whether they are here. A kernel takes about a minute.
    """
    from s24compile.kernels.gemm.cutlass import build

    kernels = build.default_kernels()
    if listing:
        for kernel in kernels:
            typer.echo(f"{kernel.name}  {build.object_path(kernel) or 'not built'}")
        return
    from rich.console import Console

    from s24compile.cli.progress import build_progress

    build.require_tools()
    console = Console()
    with build_progress(console) as progress:
        task = progress.add_task("kernels", total=len(kernels), name="")
        build.build_all(kernels, lambda done, total, name: progress.update(task, completed=done, name=name), jobs)
    console.print(f"{len(kernels)} kernels in {build.output_folder()}")
