"""Tables and pictures of the runs: final loss, gap to dense, time, flip rates; loss against steps and wall clock.

    python -m benchmarks.quality.report --folder out/quality/runs

Writes results/quality.json and one PNG per model size and training length. Step times are those that `narrow.py` took
with nothing else on the GPU, or else of windows without a compilation if the run had the GPU to itself; a run's wall
clock is steps times step time, phase by phase, so a resumed run counts like any other. Runs on GPUs of several kinds
share a table, which has the step times of one of them; texts, plans, GPUs and CPUs are never mixed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.quality.picture import draw
from benchmarks.quality.results import Result, dense_of, read, tables


def markdown(members: Sequence[Result]) -> str:
    """The table of one group."""
    lines = [
        "| variant | F | steps | loss | gap | sparse ms | dense ms | time of dense | ends 2:4 | peak, last flips |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in (result.row(dense_of(result, members)) for result in members):
        flips = _both(row["flip_rate_peak"], row["flip_rate_last"])
        cells = [
            row["variant"],
            str(row["hidden"]),
            str(row["steps"]),
            f"{row['loss']:.4f}",
            _show(row["gap"], "+.4f"),
            _show(row["sparse_step_ms"], ".1f"),
            _show(row["dense_step_ms"], ".1f"),
            _show(row["time_of_dense"], ".3f"),
            "yes" if row["ends_sparse"] else "no",
            flips,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def decay_searches(folder: Path) -> list[dict[str, Any]]:
    """What `decay.py` left in the folder: the lambda that was chosen, and mu of each candidate."""
    found = []
    for file in sorted(folder.glob("decay-*.json")):
        told = json.loads(file.read_text())
        _, size, steps = file.stem.split("-")
        mu = {trial["decay"]: trial["mu"] for trial in told["trials"]}
        found.append({"size": size, "steps": int(steps), "chosen": told["chosen"], "advice": told["advice"], "mu": mu})
    return found


def main() -> None:
    """Prints the tables, writes JSON and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("out/quality/runs"))
    parser.add_argument("--results", type=Path, default=record.RESULTS)
    flags = parser.parse_args()
    document: list[dict[str, Any]] = []
    for group, members in tables(read(flags.folder)).items():
        clock = members[0].clock_device
        print(f"\n{group[0]}, {group[1]} steps, text {group[2]}, clock of {clock}\n\n{markdown(members)}")
        same = sum((told["size"], str(told["steps"])) == group[:2] for told in document)  # other texts, or a CPU
        picture = flags.results / f"quality_{group[0]}_{group[1]}{f'_{same + 1}' if same else ''}.png"
        drawn = draw(group, members, picture)
        document.append(
            {
                "size": group[0],
                "steps": int(group[1]),
                "device": clock,
                "devices": sorted({result.header["device"] for result in members}),
                "torch": members[0].header["torch"],
                "date": max(result.header["date"] for result in members),
                "corpus": members[0].header["corpus"],
                "picture": picture.name if drawn else None,
                "rows": [result.row(dense_of(result, members)) for result in members],
                "options": {result.name: result.header["options"] for result in members},
            }
        )
    # Not `record.write`: this machine only reads what others measured.
    told = {"benchmark": "quality", "tables": document, "decay_searches": decay_searches(flags.folder)}
    (flags.results / "quality.json").write_text(json.dumps(told, indent=1) + "\n")


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _both(one: float | None, two: float | None) -> str:
    return "-" if one is None or two is None else f"{one:.1e} / {two:.1e}"


if __name__ == "__main__":
    main()
