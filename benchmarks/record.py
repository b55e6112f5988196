"""How results are kept: one JSON file per table in benchmarks/results/, with what it was measured on and when."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def write(name: str, measured: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Writes `measured` with machine, versions and date, and returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": name, **circumstances(), **measured}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def circumstances() -> dict[str, Any]:
    """Machine, versions and date of a measurement."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {os.cpu_count()} cores, {_cpu_name()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
