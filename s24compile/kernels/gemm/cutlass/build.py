"""Builds kernels with nvcc, once per machine: cached by content, safe between processes, parallel as memory allows."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from s24compile.errors import BuildError
from s24compile.kernels.gemm.cutlass import objects, tools
from s24compile.kernels.gemm.cutlass.instantiations import Kernel
from s24compile.kernels.gemm.cutlass.training_sets import narrow_training_set, training_set

log = logging.getLogger(__name__)

BYTES_PER_BUILD = 5_500_000_000
"""Peak memory of one nvcc run over one kernel, measured 2026-11 with nvcc 13.0."""

Progress = Callable[[int, int, str], None]
"""Called as (done, total, name): at the start, after each kernel, and once more at the end with an empty name."""


def build(kernel: Kernel) -> Path:
    """Builds `kernel` unless it is built already, and returns the object.

    Two processes that want the same kernel build it once: the second waits. One that dies midway leaves only a
    temporary file, which the next build removes.

    Raises:
        BuildError: nvcc or headers are missing, the object's folder cannot be made, nvcc failed, or ptxas serialised
            the wgmma pipeline.
    """
    ready = objects.object_path(kernel)
    if ready is not None:
        return ready
    tools.require_tools()
    name = objects.exact_name(kernel)
    assert name is not None  # tools are there
    target = _output_folder() / name
    # An flock: the kernel drops it when the process ends, however it ends.
    with FileLock(target.with_suffix(".lock")):
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


def default_kernels(narrow: bool = False) -> list[Kernel]:
    """What `s24 build` builds; with `narrow` what training in 8 bits needs."""
    from s24compile.kernels.gemm.cutlass.tuned import schedules

    return narrow_training_set(schedules(narrow)) if narrow else training_set("bf16", schedules())


def parallel_builds() -> int:
    """Builds that fit at a time: one per core and per 5.5 GB of available memory, at least one."""
    available = BYTES_PER_BUILD
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return max(1, min(len(os.sched_getaffinity(0)), available // BYTES_PER_BUILD))


def _output_folder() -> Path:
    """`objects.output_path`, made when missing."""
    folder = objects.output_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(
            what="a CUTLASS kernel",
            found=f"{folder} cannot be made: {error.strerror}",
            accepted="point S24_KERNEL_DIR at a folder to write kernels to",
        ) from error
    return folder


def _compile(kernel: Kernel, target: Path) -> None:
    """Runs nvcc over `kernel` and renames the finished object to `target` (atomic)."""
    nvcc, headers = tools.find_nvcc(), tools.find_headers()
    assert nvcc is not None
    partial = target.with_suffix(f".{os.getpid()}.partial")
    with tempfile.TemporaryDirectory(prefix="s24-build-") as folder:
        source = Path(folder) / f"{kernel.name}.cu"
        source.write_text(kernel.source())
        command = [str(nvcc), *objects.FLAGS, f"-I{headers}", f"-I{objects.HERE}", str(source), "-o", str(partial)]
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


def _tail(output: str) -> str:
    lines = [line[:400] for line in output.splitlines() if line.strip()]
    return "\n".join(lines[-15:])
