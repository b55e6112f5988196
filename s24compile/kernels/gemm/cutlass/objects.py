"""Where built kernels are and what they are called. Nothing here builds, and nothing makes a folder.

An object's file name is <kernel>.<source hash>.<toolchain hash>.so: of the sources and flags, and of nvcc's and
CUTLASS's versions. Objects are looked for in $S24_KERNEL_DIR, in the folder `prebuilt` beside this file (the package
brings none; it is there for whoever installs objects with it), and in the user's cache; the last (or S24_KERNEL_DIR
where it is set) is also where new ones go. Prebuilt objects serve machines that have no nvcc, so there only the source
hash has to match.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path

from s24compile.kernels.arch import HOPPER
from s24compile.kernels.gemm.cutlass import tools
from s24compile.kernels.gemm.cutlass.instantiations import Kernel

HERE = Path(__file__).parent
FLAGS = (
    "-O3",
    # Without it, assertions in the main loop make ptxas serialise the wgmma pipeline (C7510): less than half the speed.
    "-DNDEBUG",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    *HOPPER.nvcc_flags,
    "-shared",
    "-Xcompiler",
    "-fPIC",
)


def object_path(kernel: Kernel) -> Path | None:
    """The built object of `kernel`, or None where it has to be built first."""
    exact = exact_name(kernel)
    for folder in search_folders():
        if exact is not None and (folder / exact).is_file():
            return folder / exact
    for folder in search_folders() if exact is None else _prebuilt_folders():
        found = sorted(folder.glob(f"{kernel.name}.{source_hash(kernel)}.*.so"))
        if found:
            return found[0]
    return None


def any_prebuilt() -> bool:
    """Whether there is any object that a machine without nvcc could load: a kernel of ours, of the present sources."""
    return any(_is_present(path.name) for folder in search_folders() for path in folder.glob("*.*.*.so"))


@functools.cache
def _is_present(name: str) -> bool:
    """Whether an object's file name is one that `object_path` takes. Asked at every choice of a provider."""
    stem, source, *_ = name.split(".")
    kernel = Kernel.parse(stem)
    return kernel is not None and source_hash(kernel) == source


def output_path() -> Path:
    """Where new objects go: $S24_KERNEL_DIR, else the user's cache. It need not exist."""
    given = os.environ.get("S24_KERNEL_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "s24compile" / "kernels"


def search_folders() -> list[Path]:
    """Where objects are looked for, best first."""
    folders = [*_prebuilt_folders(), output_path()]
    return list(dict.fromkeys(folders))


def _prebuilt_folders() -> list[Path]:
    given = os.environ.get("S24_KERNEL_DIR")
    return ([Path(given)] if given else []) + [HERE / "prebuilt"]


def exact_name(kernel: Kernel) -> str | None:
    """The file name of an object that this machine builds, or None where it builds none."""
    toolchain = tools.toolchain_hash()
    return None if toolchain is None else f"{kernel.name}.{source_hash(kernel)}.{toolchain}.so"


def source_hash(kernel: Kernel) -> str:
    """Hash of everything that we control: the row's .cu, the template's files and the flags."""
    source = kernel.source()
    digest = hashlib.sha256(source.encode())
    for name in re.findall(r'^#include "(.*)"', source, re.MULTILINE):
        digest.update(_included(name))
    digest.update("\0".join(FLAGS).encode())
    return digest.hexdigest()[:12]


@functools.cache
def _included(name: str) -> bytes:
    """A template file and, recursively, those of our own that it includes; CUTLASS's are the toolchain's."""
    text = (HERE / name).read_text()
    ours = [inner for inner in re.findall(r'^#include "(.*)"', text, re.MULTILINE) if "/" not in inner]
    return text.encode() + b"".join(_included(inner) for inner in ours)
