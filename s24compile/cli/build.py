"""`s24 build`: compiles the CUTLASS kernels ahead of time, so that the first training step does not."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Annotated

import typer

from s24compile.errors import TargetError

BUILDER = "s24compile.kernels.cutlass.build"


def command(
    arch: Annotated[
        str, typer.Option(help="GPU architecture to build for, e.g. sm_90; auto: that of this machine.")
    ] = "auto",
) -> None:
    """Compile the CUDA kernels now and keep them in the cache. Needs nvcc and CUTLASS's headers (`s24 doctor`)."""
    if importlib.util.find_spec(BUILDER.rpartition(".")[0]) is None or importlib.util.find_spec(BUILDER) is None:
        raise TargetError(
            what="s24 build",
            target=arch,
            found="this version of s24compile has no CUDA kernels to build",
            accepted="training runs on the reference kernels",
        )
    importlib.import_module(BUILDER).build(arch)
