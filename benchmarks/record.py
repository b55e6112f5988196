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


def add_rows(name: str, rows: list[dict[str, Any]], key: tuple[str, ...], folder: Path = RESULTS) -> Path:
    """Puts rows into the table `name`, each in place of the one with the same values of `key`; others stay.

    A call need not measure all rows, so each says on what and when it was measured; the table says so for the last.
    """
    path = folder / f"{name}.json"
    old = json.loads(path.read_text()) if path.is_file() else {"rows": []}
    measured = [_dated(row, old) for row in old["rows"]] + [_dated(row, circumstances()) for row in rows]
    table = {tuple(row.get(field) for field in key): row for row in measured}
    return write(name, {"rows": list(table.values())}, folder)


def _dated(row: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """The row with what it lacks of the circumstances that a row keeps."""
    return {field: document[field] for field in ("date", "device", "torch") if field in document} | row


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
