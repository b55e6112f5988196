"""Builds kernels with nvcc, once per machine: cached by content, safe between processes, parallel as memory allows.

An object's file name is <kernel>.<source hash>.<toolchain hash>.so: of the sources and flags, and of nvcc's and
CUTLASS's versions. Objects are looked for in $S24_KERNEL_DIR, in the package's own folder `prebuilt` (wheels), and in
the user's cache; the last (or S24_KERNEL_DIR where it is set) is also where new ones go. Prebuilt objects serve
machines that have no nvcc, so there only the source hash has to match.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from s24compile.errors import BuildError
from s24compile.kernels.gemm.cutlass.instantiations import Kernel, training_set

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
FLAGS = (
    "-O3",
    # Without it, assertions in the main loop make ptxas serialise the wgmma pipeline (C7510): less than half the speed.
    "-DNDEBUG",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-shared",
    "-Xcompiler",
    "-fPIC",
)
PACKAGES = 'pip install "s24compile[cuda]" brings both (PyPI: nvidia-cutlass and nvidia-cuda-nvcc; apt: cuda-nvcc-13-0)'
"""What to install where nvcc or the headers are missing."""
BYTES_PER_BUILD = 5_500_000_000
"""Peak memory of one nvcc run over one kernel, measured 2026-11 with nvcc 13.0."""

Progress = Callable[[int, int, str], None]
"""Called as (done, total, name): at the start, after each kernel, and once more at the end with an empty name."""


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


def object_path(kernel: Kernel) -> Path | None:
    """The built object of `kernel`, or None where it has to be built first."""
    exact = _exact_name(kernel)
    for folder in search_folders():
        if exact is not None and (folder / exact).is_file():
            return folder / exact
    for folder in search_folders() if exact is None else _prebuilt_folders():
        found = sorted(folder.glob(f"{kernel.name}.{source_hash(kernel)}.*.so"))
        if found:
            return found[0]
    return None


def any_prebuilt() -> bool:
    """Whether there is any object that a machine without nvcc could load."""
    return any(True for folder in search_folders() for _ in folder.glob("*.so"))


def build(kernel: Kernel) -> Path:
    """Builds `kernel` unless it is built already, and returns the object.

    Two processes that want the same kernel build it once: the second waits. One that dies midway leaves only a
    temporary file, which the next build removes.

    Raises:
        BuildError: nvcc or headers are missing, nvcc failed, or ptxas serialised the wgmma pipeline.
    """
    ready = object_path(kernel)
    if ready is not None:
        return ready
    require_tools()
    name = _exact_name(kernel)
    assert name is not None  # tools are there
    target = output_folder() / name
    with _lock(target.with_suffix(".lock")):
        if not target.is_file():
            for stale in target.parent.glob(f"{target.stem}.*.partial"):
                stale.unlink()
            log.warning("building the CUTLASS kernel %s (once on this machine; about a minute)", kernel.name)
            _compile(kernel, target)
    return target


def build_all(
    kernels: Iterable[Kernel] | None = None, progress: Progress | None = None, jobs: int | None = None
) -> list[Path]:
    """Builds `kernels` (default: what training in bf16 needs, with every schedule of the tuned table), in parallel.

    Args:
        kernels: what to build; those already built cost nothing.
        progress: see `Progress`; called from this thread only.
        jobs: builds at a time; None: as many as cores and free memory allow.

    Raises:
        BuildError: see `build`; the first one, after everything else has been built.
    """
    wanted = list(default_kernels() if kernels is None else kernels)
    done = 0
    report = progress or (lambda done, total, name: None)
    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs or parallel_builds()) as pool:
        running = {pool.submit(build, kernel): kernel for kernel in wanted}
        report(0, len(wanted), wanted[0].name if wanted else "")
        for future in concurrent.futures.as_completed(running):
            done += 1
            report(done, len(wanted), running[future].name)
    report(done, len(wanted), "")
    return [future.result() for future in running]


def default_kernels() -> list[Kernel]:
    """What `s24 build` builds."""
    from s24compile.kernels.gemm.cutlass.tuned import schedules

    return training_set("bf16", schedules())


def parallel_builds() -> int:
    """Builds that fit at a time: one per core and per 5.5 GB of available memory, at least one."""
    available = BYTES_PER_BUILD
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return max(1, min(len(os.sched_getaffinity(0)), available // BYTES_PER_BUILD))


def output_folder() -> Path:
    """Where new objects go: $S24_KERNEL_DIR, else the user's cache. Made when missing."""
    given = os.environ.get("S24_KERNEL_DIR")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(given) if given else cache / "s24compile" / "kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def search_folders() -> list[Path]:
    """Where objects are looked for, best first."""
    folders = [*_prebuilt_folders(), output_folder()]
    return list(dict.fromkeys(folders))


def _prebuilt_folders() -> list[Path]:
    given = os.environ.get("S24_KERNEL_DIR")
    return ([Path(given)] if given else []) + [HERE / "prebuilt"]


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


@functools.cache
def _toolchain_hash() -> str | None:
    nvcc, headers = find_nvcc(), find_headers()
    if nvcc is None or headers is None:
        return None
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    digest = hashlib.sha256(version.encode())
    digest.update((headers / "cutlass/version.h").read_bytes())
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        digest.update(importlib.metadata.version("nvidia-cutlass").encode())
    return digest.hexdigest()[:12]


def _exact_name(kernel: Kernel) -> str | None:
    toolchain = _toolchain_hash()
    return None if toolchain is None else f"{kernel.name}.{source_hash(kernel)}.{toolchain}.so"


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


def _compile(kernel: Kernel, target: Path) -> None:
    """Runs nvcc over `kernel` and renames the finished object to `target` (atomic)."""
    nvcc, headers = find_nvcc(), find_headers()
    assert nvcc is not None
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with tempfile.TemporaryDirectory(prefix="s24-build-") as folder:
        source = Path(folder) / f"{kernel.name}.cu"
        source.write_text(kernel.source())
        command = [str(nvcc), *FLAGS, f"-I{headers}", f"-I{HERE}", str(source), "-o", str(partial)]
        # TMPDIR: nvcc's intermediate files go where they are removed, also when this process is killed and restarted.
        environment = os.environ | {"TMPDIR": folder}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    output = run.stdout + run.stderr
    try:
        if run.returncode != 0:
            raise BuildError(what=kernel.name, found=f"nvcc failed:\n{_tail(output)}", accepted=_REPORT)
        if "C7510" in output:
            raise BuildError(
                what=kernel.name, found=f"ptxas serialised the wgmma pipeline:\n{_tail(output)}", accepted=_REPORT
            )
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


_REPORT = "this combination of nvcc and CUTLASS is not supported: nvcc 13.0 with nvidia-cutlass 4.2 is"


def _tail(output: str, lines: Sequence[str] = ()) -> str:
    lines = [line[:400] for line in output.splitlines() if line.strip()]
    return "\n".join(lines[-15:])


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on `path`; the kernel drops it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
