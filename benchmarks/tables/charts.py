"""The chart of the performance page, drawn when the documentation is built."""

from __future__ import annotations

import io

from benchmarks.tables.speeds import speeds_by_name


def speed_chart() -> bytes:
    """A PNG: one bar for each layer, block and training step that was timed, its speed in times of dense."""
    from matplotlib.figure import Figure

    found = speeds_by_name()
    figure = Figure(figsize=(8, 0.32 * len(found) + 0.9), layout="constrained")
    axes = figure.subplots()
    places = range(len(found))
    bars = axes.barh(places, list(found.values()), color="#2a78d6", height=0.7)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.axvline(1.0, color="black", lw=1)
    axes.set_yticks(list(places), list(found), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(found.values()))
    axes.set_xlabel("speed with 2:4, in times of dense (the line)", fontsize=8)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=110)
    return written.getvalue()
