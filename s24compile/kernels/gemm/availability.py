"""Whether this machine has the 2:4 GEMM that its target wants, and what to do where it has not.

CUTLASS's kernels need nvcc and headers, or prebuilt objects. Without any of them compiling for Hopper raises an error
that names the packages; with S24_ALLOW_CUSPARSELT=1 cuSPARSELt stands in, through torch and in its own format.
"""

from __future__ import annotations

import os

import torch

from s24compile.errors import BuildError
from s24compile.kernels.arch import Arch

ALLOW = "S24_ALLOW_CUSPARSELT"
"""Environment variable; read once per process and GPU. Anything but "" and "0" allows it."""


def stands_in(arch: Arch) -> bool:
    """Whether cuSPARSELt does what CUTLASS cannot: on Hopper, with nothing built or buildable, if the user allows it.

    Raises:
        BuildError: allowed, needed, and not in this build of torch.
    """
    if not arch.stand_in or os.environ.get(ALLOW, "") in ("", "0") or not cutlass_is_missing():
        return False
    if not torch.backends.cusparselt.is_available():
        from s24compile.kernels.gemm.cutlass.tools import PACKAGES, missing_tools

        raise BuildError(
            what="a CUTLASS kernel",
            found=f"{missing_tools()}, and {ALLOW} does not help: this build of torch has no cuSPARSELt",
            accepted=f"{PACKAGES}; torch's own wheels for CUDA have cuSPARSELt",
        )
    return True


def cutlass_is_missing() -> bool:
    """Whether no CUTLASS kernel can run here: none is built and none can be."""
    from s24compile.kernels.gemm.cutlass import objects, tools  # not at import: nothing of CUTLASS's is loaded on a CPU

    return tools.missing_tools() is not None and not objects.any_prebuilt()


def require_gemm(arch: Arch, format: str) -> None:
    """Refuses to compile for a GPU of this machine whose products would run on the reference for lack of packages.

    Args:
        arch: compiled for.
        format: name of the 2:4 format that the graph packs.

    Raises:
        BuildError: it names them, and the variable that lets cuSPARSELt stand in.
    """
    # Without a GPU a Target stands for another machine: lowering is looked at, and our own tools say nothing.
    needed = "cutlass" in arch.providers and format == arch.format
    if needed and torch.cuda.is_available() and cutlass_is_missing():
        from s24compile.kernels.gemm.cutlass.tools import require_tools

        require_tools()
