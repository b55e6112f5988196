"""What builds kernels: nvcc and CUTLASS's headers, where they are, which versions, and what to install without them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from s24compile.errors import BuildError

PACKAGES = 'pip install "s24compile[cuda]" brings both (PyPI: nvidia-cutlass and nvidia-cuda-nvcc; apt: cuda-nvcc-13-0)'
"""What to install where nvcc or the headers are missing."""


def find_nvcc() -> Path | None:
    """nvcc of the PATH, of $CUDA_HOME, of /usr/local/cuda, or of PyPI's nvidia-cuda-nvcc, in this order."""
    on_path = shutil.which("nvcc")
    candidates = [Path(on_path)] if on_path else []
    candidates += [Path(os.environ[name]) / "bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        candidates += sorted(Path(folder).glob("*/bin/nvcc"), reverse=True)
    return next((path for path in candidates if path.is_file() and os.access(path, os.X_OK)), None)


def find_headers() -> Path | None:
    """CUTLASS's include folder: $CUTLASS_HOME/include, or that of PyPI's nvidia-cutlass."""
    candidates = [Path(os.environ["CUTLASS_HOME"]) / "include"] if os.environ.get("CUTLASS_HOME") else []
    spec = importlib.util.find_spec("cutlass_library")
    if spec is not None and spec.origin:
        candidates.append(Path(spec.origin).parent / "source/include")
    return next((path for path in candidates if (path / "cutlass/version.h").is_file()), None)


def missing_tools() -> str | None:
    """A sentence on what this machine lacks to build kernels, or None."""
    if find_nvcc() is None:
        return "nvcc was not found"
    if find_headers() is None:
        return "the CUTLASS headers were not found"
    return None


def require_tools() -> None:
    """Raises BuildError, naming the packages to install, where nvcc or the headers are missing."""
    found = missing_tools()
    if found is not None:
        raise BuildError(
            what="a CUTLASS kernel",
            found=found,
            accepted=f"{PACKAGES}, or point S24_KERNEL_DIR at a folder of prebuilt objects; without either, "
            "S24_ALLOW_CUSPARSELT=1 lets cuSPARSELt stand in on Hopper: slower, and its sums are rounded to 16 bits",
        )


@functools.cache
def toolchain_hash() -> str | None:
    """Hash of nvcc's and CUTLASS's versions, or None where one of them is missing."""
    nvcc, headers = find_nvcc(), find_headers()
    if nvcc is None or headers is None:
        return None
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(version.encode())
    digest.update((headers / "cutlass/version.h").read_bytes())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        digest.update(importlib.metadata.version("nvidia-cutlass").encode())
    return digest.hexdigest()[:12]
