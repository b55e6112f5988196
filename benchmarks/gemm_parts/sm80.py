"""The Ampere kernel as an oracle: builds sm80_sparse_gemm.cu and puts it in the place of torch's op, also on Hopper.

python -m benchmarks.gemm_parts.sm80 [object]      builds it (half a minute), where it is not yet built
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from s24compile.kernels.gemm import torch as provider
from s24compile.kernels.gemm.cutlass import objects, tools

SOURCE = Path(__file__).with_name("sm80_sparse_gemm.cu")
_HASH = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
OBJECT = objects.output_path() / "oracle" / f"sm80.{_HASH}.so"
"""In a folder of its own: what lies beside it counts as a kernel that training can use."""
# Code of compute capability 8.0 does not run on 9.0, so both are in the object.
ARCHITECTURES = ("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90")


def build_oracle(path: Path = OBJECT) -> Path:
    """Builds the object unless it is there.

    Raises:
        BuildError: nvcc or the headers are missing.
        CalledProcessError: nvcc failed.
    """
    if path.is_file():
        return path
    tools.require_tools()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    flags = ("-O3", "-DNDEBUG", "-std=c++17", "--expt-relaxed-constexpr", "-shared", "-Xcompiler", "-fPIC")
    command = [tools.find_nvcc(), *flags, *ARCHITECTURES, f"-I{tools.find_headers()}", SOURCE, "-o", partial]
    subprocess.run([str(part) for part in command], check=True)
    return partial.replace(path)


class Oracle:
    """The opened object, called as `kernels.gemm.torch.multiply` is."""

    def __init__(self, path: Path) -> None:
        call: Any = ctypes.CDLL(str(path)).s24_sm80_gemm
        pointer, size, stride = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
        call.argtypes = [size, size, pointer, stride, pointer, pointer, stride, pointer, size, size, size, pointer]
        self._call = call

    def __call__(self, values: Tensor, metadata: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        """C [m, n], row-major, in B's dtype.

        Raises:
            ValueError: CUTLASS refuses the operands, as torch's op would.
        """
        (k, n), m = b.shape, values.shape[0]
        assert values.shape == (m, k // 2)
        assert metadata.shape == (m, k // 16)
        by_rows = b.stride(1) == 1
        c = torch.empty((m, n), dtype=torch.float32, device=b.device)
        status = self._call(
            int(b.dtype == torch.bfloat16), int(by_rows), values.data_ptr(), values.stride(0), metadata.data_ptr(),
            b.data_ptr(), b.stride(0 if by_rows else 1), c.data_ptr(), m, n, k, torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
        if status != 0:
            raise ValueError(f"CUTLASS refuses m, n, k = {m}, {n}, {k}: cutlass::Status {status}")
        return (c if bias is None else c + bias.float()[:, None]).to(b.dtype)


@contextlib.contextmanager
def standing_in(oracle: Oracle) -> Iterator[None]:
    """Within the block the provider "torch" multiplies with the oracle instead of torch's op."""
    with mock.patch.object(provider, "multiply", oracle):
        yield


if __name__ == "__main__":
    print(build_oracle(Path(sys.argv[1]) if len(sys.argv) > 1 else OBJECT))
