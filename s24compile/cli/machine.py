"""What `s24 doctor` looks at. Nothing here starts a kernel or writes a file."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from typing import Literal

import torch

from s24compile.kernels import providers as registry
from s24compile.kernels.gemm.cutlass import tools
from s24compile.kernels.target import Target


@dataclasses.dataclass(frozen=True)
class Fact:
    """One thing that was looked for. "missing": needed here; "absent": more would be possible, or faster, with it."""

    name: str
    status: Literal["ok", "missing", "absent"]
    found: str
    advice: str = ""


def examine() -> list[Fact]:
    """Looks at versions, compilers, GPU and libraries."""
    return [_python(), _torch(), _entry_point(), _compiler(), _triton(), _gpu(), _nvcc(), _cutlass(), _cusparselt()]


def providers() -> dict[str, str]:
    """Whose kernel each op would use here, for arguments that every provider takes."""
    return registry.serving(Target.detect(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def _python() -> Fact:
    version = platform.python_version()
    return Fact("Python", "ok" if sys.version_info >= (3, 11) else "missing", version)


def _torch() -> Fact:
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    good = release >= (2, 11)
    return Fact(
        "torch", "ok" if good else "missing", f"{torch.__version__} ({build})", "" if good else "2.11 is needed"
    )


def _entry_point() -> Fact:
    found = importlib.metadata.entry_points(group="torch_dynamo_backends")
    if "s24" in found.names:
        return Fact('backend="s24"', "ok", found["s24"].value)
    return Fact(
        'backend="s24"', "missing", "entry point not registered", "pip install -e . (or import s24compile first)"
    )


def _compiler() -> Fact:
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path:
        return Fact("C++ compiler", "ok", path)
    # Inductor compiles C++ for CPU graphs; on a GPU it is Triton's launcher that needs a C compiler.
    return Fact("C++ compiler", "missing", "none of c++, g++, clang++", "TorchInductor needs one: install g++")


def _triton() -> Fact:
    if importlib.util.find_spec("triton") is None:
        status: Literal["missing", "absent"] = "missing" if torch.cuda.is_available() else "absent"
        return Fact("Triton", status, "not installed", "GPU kernels and TorchInductor on GPUs need it")
    # Its own word: builds for torch's nightlies and for other GPUs are distributions of other names.
    return Fact("Triton", "ok", str(importlib.import_module("triton").__version__))


def _gpu() -> Fact:
    if not torch.cuda.is_available():
        return Fact("GPU", "absent", "no CUDA device", "everything runs on the CPU reference, slower than dense")
    target = Target.detect(torch.device("cuda"))
    found = f"{torch.cuda.get_device_name()} ({target}), {torch.cuda.device_count()} of them"
    return Fact("GPU", "ok" if target.unknown is None else "absent", found, target.unknown or "")


def _nvcc() -> Fact:
    path = tools.find_nvcc()
    if path is None:
        return Fact(
            "nvcc", "absent", "not found", "CUTLASS kernels need it: a CUDA toolkit, or pip install 's24compile[cuda]'"
        )
    said = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False).stdout
    release = next(
        (line.partition("release ")[2] for line in said.splitlines() if "release" in line), "unknown release"
    )
    return Fact("nvcc", "ok", f"{release} ({path})")


def _cutlass() -> Fact:
    path = tools.find_headers()
    if path is None:
        return Fact("CUTLASS headers", "absent", "not found", "pip install 's24compile[cuda]', or set CUTLASS_HOME")
    return Fact("CUTLASS headers", "ok", str(path))


def _cusparselt() -> Fact:
    backend = getattr(torch.backends, "cusparselt", None)
    version = backend.version() if backend is not None and backend.is_available() else None
    if version is None:
        return Fact(
            "cuSPARSELt", "absent", "not in this build of torch", "can stand in for CUTLASS: CUDA wheels of torch"
        )
    return Fact("cuSPARSELt", "ok", str(version))
