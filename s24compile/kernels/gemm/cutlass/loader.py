"""Opens built kernels through ctypes. No libtorch and no libcuda are linked, so an object outlives torch versions."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import struct
from collections.abc import Callable

from s24compile.errors import BuildError
from s24compile.kernels.gemm.cutlass import build
from s24compile.kernels.gemm.cutlass.instantiations import Kernel

PROBLEM = struct.Struct("=18q10i2f")
"""`struct Problem` of sparse_gemm.cuh: 11 pointers, workspace bytes, 6 strides; 10 ints; alpha, beta."""

MISALIGNED, BAD_CONFIG = -1, -2


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One opened object."""

    kernel: Kernel
    gemm: Callable[[bytes, int], int]
    """(packed Problem, cudaStream_t) -> 0, a negative `Result`, or a positive cudaError_t. Launches, never waits."""
    workspace: Callable[[bytes], int]
    """Bytes of workspace that this Problem needs; pointers in it are not read."""

    def explain(self, code: int) -> str:
        """Words for a return code other than 0."""
        names = {
            MISALIGNED: "an address or stride is no multiple of 16 bytes",
            BAD_CONFIG: "CUTLASS refused the problem",
        }
        return names.get(code, f"CUDA error {code}")


@functools.cache
def load(kernel: Kernel) -> Loaded:
    """Opens `kernel`, building it first where it is not built yet.

    Raises:
        BuildError: it cannot be built here, or the object does not fit this version of the package.
    """
    path = build.build(kernel)
    try:
        library = ctypes.CDLL(str(path))
        abi, gemm, workspace = library.s24_abi, library.s24_gemm, library.s24_workspace
    except (OSError, AttributeError) as error:
        raise BuildError(what=kernel.name, found=f"{path} does not load: {error}", accepted=_REBUILD) from error
    if abi() != PROBLEM.size:
        raise BuildError(what=kernel.name, found=f"{path} is of another version of s24compile", accepted=_REBUILD)
    gemm.argtypes, gemm.restype = (ctypes.c_char_p, ctypes.c_void_p), ctypes.c_int
    workspace.argtypes, workspace.restype = (ctypes.c_char_p,), ctypes.c_int64
    return Loaded(kernel, gemm, workspace)


_REBUILD = "delete it and run `s24 build`"
