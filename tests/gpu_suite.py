"""The whole suite on a machine with GPUs: kernels built first, then every test, those marked `gpu` too.

    make test-gpu                                   what the README says: builds what is missing, runs everything
    python -m tests.gpu_suite --build-only          builds, on a machine that need not have a GPU
    python -m tests.gpu_suite --budget-s 570        stops in time; exit status 3 says that something is left
    python -m tests.gpu_suite --budget-s 570 --resume     goes on with the tests that have not passed yet

Writes gpu_suite.json (date, GPU, versions, commit, closing line, failures) into --out, however the run ends, and
gpu_suite_failures.txt with the tracebacks. Workers of pytest share the GPUs (tests/conftest.py). Exit status: that of
pytest; 2 if there is no GPU; 3 if the time was over.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import record
from s24compile.kernels.gemm.cutlass import objects
from tests.passed_before import VARIABLE

ROOT = Path(__file__).parents[1]
OUT_OF_TIME = 3
CHECKS = sorted(str(path) for path in (ROOT / "tests" / "kernels").glob("triton_*checks.py"))
"""On a CPU test_triton.py runs these in processes of their own, for Triton's interpreter. Here pytest does."""
INSTEAD = "tests/kernels/test_triton.py"
FINISHING_S = 20
"""Seconds that pytest gets to stop its workers, which xdist ends after ten, and to print its summary."""


class Recorder:
    """What became of each test: a plugin of pytest, in the process that the workers report to."""

    def __init__(self, done: dict[str, dict[str, Any]]) -> None:
        self.tests = done
        """Test -> outcome, seconds, and the reason where there is one."""
        self.tracebacks: dict[str, str] = {}
        self.running: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A worker has begun."""
        self.running.add(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A worker is done with it."""
        self.running.discard(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Setup, call and teardown each make a report; the worst of them is the outcome."""
        test = self.tests.setdefault(report.nodeid, {"outcome": "passed", "seconds": 0.0})
        test["seconds"] += report.duration
        if hasattr(report, "wasxfail"):
            test |= {"outcome": "xfailed" if report.skipped else "xpassed", "reason": report.wasxfail}
        elif report.failed:
            outcome = "failed" if report.when == "call" else "error"
            test |= {"outcome": outcome, "reason": last_line(report.longreprtext)}
            self.tracebacks[report.nodeid] = report.longreprtext
        elif report.skipped:
            test |= {"outcome": "skipped", "reason": str(report.longrepr[-1] if report.longrepr else "")}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file that cannot be collected is an error as a test is."""
        if report.failed:
            self.tests[report.nodeid] = {"outcome": "error", "seconds": 0.0, "reason": last_line(report.longreprtext)}
            self.tracebacks[report.nodeid] = report.longreprtext


def last_line(text: str) -> str:
    """Of a traceback, what pytest would print in its short summary."""
    lines = [line.removeprefix("E").strip() for line in text.splitlines() if line.startswith("E ")]
    return lines[0][:300] if lines else text.strip().rpartition("\n")[2][:300]


def closing_line(tests: dict[str, dict[str, Any]], seconds: float) -> str:
    """As pytest's own: "4 failed, 4700 passed, 20 skipped in 541.20s (0:09:01)"."""
    counts = Counter(test["outcome"] for test in tests.values())
    order = ("failed", "passed", "skipped", "xfailed", "xpassed", "error")
    spelled = ", ".join(f"{counts[outcome]} {outcome}" for outcome in order if counts[outcome]) or "no tests ran"
    minutes, rest = divmod(int(seconds), 60)
    return f"{spelled} in {seconds:.2f}s ({minutes // 60}:{minutes % 60:02}:{rest:02})"


def run_tests(flags: argparse.Namespace, recorder: Recorder, deadline: float) -> int:
    """Runs pytest over everything; when the time is over it stops, with its summary."""

    def stop(*_: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, FINISHING_S)  # for workers that do not stop
        raise pytest.exit.Exception("the time is over", returncode=OUT_OF_TIME)

    words = [*(flags.tests or [str(ROOT / "tests"), *CHECKS]), "-q", "-p", "no:cacheprovider"]
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "--deselect", INSTEAD, *flags.pytest]
    words += ["-n", str(flags.jobs), "--dist", "worksteal"] if flags.jobs else ["-p", "no:xdist"]
    if recorder.tests:
        passed = flags.state.with_suffix(".passed")
        passed.write_text(json.dumps(sorted(recorder.tests)))
        os.environ[VARIABLE] = str(passed.resolve())
        words += ["-p", "tests.passed_before"]
    signal.signal(signal.SIGALRM, stop)
    if deadline < math.inf:
        signal.setitimer(signal.ITIMER_REAL, max(1.0, deadline - FINISHING_S - time.monotonic()))
    try:
        return int(pytest.main(words, plugins=[recorder]))
    except pytest.exit.Exception:
        return OUT_OF_TIME
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def report(recorder: Recorder, flags: argparse.Namespace, status: int, seconds: float, built: list[str]) -> Path:
    """Writes gpu_suite.json, and the tracebacks of what failed beside it: an interrupted pytest prints none."""
    tests, shown = recorder.tests, flags.out / "gpu_suite_failures.txt"
    shown.unlink(missing_ok=True)
    if recorder.tracebacks:
        flags.out.mkdir(parents=True, exist_ok=True)
        shown.write_text("\n\n".join(f"== {name}\n{text}" for name, text in recorder.tracebacks.items()))
    wrong = {name: t["reason"] for name, t in sorted(tests.items()) if t["outcome"] in ("failed", "error", "xpassed")}
    slow = sorted(tests.items(), key=lambda item: -item[1]["seconds"])[:10]
    told = {
        "gpus": torch.cuda.device_count(),
        "driver": first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "triton": version_of_triton(),
        "commit": flags.commit or first_line("git", "rev-parse", "HEAD") or None,
        "changed_files": lines_of("git", "status", "--porcelain", "--untracked-files=no"),
        "cores": len(os.sched_getaffinity(0)),
        "workers": flags.jobs,
        "status": status,
        "closing": closing_line(tests, seconds),
        "failed": wrong,
        "out_of_time": sorted(recorder.running) if status == OUT_OF_TIME else [],
        "skipped": dict(Counter(t["reason"] for t in tests.values() if t["outcome"] == "skipped")),
        "slowest_s": {name: round(t["seconds"], 1) for name, t in slow},
        "kernels_built_by_tests": built,
    }
    return record.write("gpu_suite", told, flags.out)


def first_line(*command: str) -> str:
    """Of what a program prints; "" where there is none."""
    return next(iter(lines_of(*command)), "")


def lines_of(*command: str) -> list[str]:
    """What a program prints; nothing where it fails or is not there."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def version_of_triton() -> str:
    """Of the installed Triton; "" where there is none."""
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def kernels() -> set[str]:
    """File names of the kernels that are built."""
    return {path.name for folder in objects.search_folders() for path in folder.glob("*.so")}


def main() -> int:
    """Builds, tests, reports."""
    flags = parser().parse_args()
    begin = time.monotonic()
    deadline = begin + flags.budget_s
    # One thread a worker: there are as many workers as cores.
    os.environ |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if not (flags.build_only or flags.anywhere or torch.cuda.is_available()):
        print("no CUDA device that torch can use: `s24 doctor` says what is missing, and `make test` runs without one")
        return 2
    if not flags.no_build:
        words = [] if deadline == math.inf else ["--budget-s", str(flags.budget_s)]
        command = [sys.executable, "-m", "tests.kernels.prebuild", *words]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status or flags.build_only:
            return status
    flags.state.parent.mkdir(parents=True, exist_ok=True)
    before: dict[str, Any] = {"seconds": 0.0, "tests": {}}
    if flags.resume and flags.state.is_file():
        before = json.loads(flags.state.read_text())
    kept = {name: test for name, test in before["tests"].items() if test["outcome"] not in ("failed", "error")}
    recorder, at_first, started = Recorder(kept), kernels(), time.monotonic()
    status = run_tests(flags, recorder, deadline)
    seconds = before["seconds"] + time.monotonic() - started
    if status == OUT_OF_TIME:  # what was running has no outcome
        recorder.tests = {name: t for name, t in recorder.tests.items() if name not in recorder.running}
    flags.state.write_text(json.dumps({"seconds": seconds, "tests": recorder.tests}))
    path = report(recorder, flags, status, seconds, sorted(kernels() - at_first))
    print(f"{closing_line(recorder.tests, seconds)}; {path}")
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--budget-s", type=float, default=math.inf, help="wall clock for everything, in seconds")
    made.add_argument("--build-only", action="store_true", help="build the kernels, then stop")
    made.add_argument("--no-build", action="store_true", help="all kernels are built")
    made.add_argument("--resume", action="store_true", help="leave out what passed in the run before")
    made.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="workers; default: one a core")
    made.add_argument("--commit", default="", help="what is tested, where git cannot say it")
    made.add_argument("--out", type=Path, default=record.RESULTS, help="folder of gpu_suite.json")
    made.add_argument("--state", type=Path, default=ROOT / "out" / "gpu_suite.json", help="what --resume reads")
    made.add_argument("--anywhere", action="store_true", help="run where there is no GPU, too")
    made.add_argument("--tests", nargs="*", default=[], help="files or folders; default: all")
    made.add_argument("--pytest", nargs="*", default=[], metavar="WORD", help="further words for pytest")
    return made


if __name__ == "__main__":
    sys.exit(main())
