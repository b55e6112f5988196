"""Makes the tables of README.md anew, of benchmarks/results: `python -m benchmarks.tables` after a measurement."""

from __future__ import annotations

from benchmarks.tables.readme import README, made

if __name__ == "__main__":
    README.write_text(made(README.read_text()))
