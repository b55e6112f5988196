"""Draws the committed results: our speed over cuBLAS for every shape, beside cuSPARSELt's."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(results: dict[str, Any], path: Path, dtype: str) -> None:
    """One horizontal bar per GEMM, grouped by model; a line at 1 (cuBLAS) and one at the geometric mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = results["shapes"]
    figure, axes = plt.subplots(figsize=(9, 0.19 * len(rows) + 1.4))
    labels = [f"{row['model'].partition(',')[0]} {row['role']}  {row['m']}x{row['n']}x{row['k']}" for row in rows]
    places = range(len(rows))
    axes.barh(places, [row["speedup"] for row in rows], color="#2a78d6", height=0.7, label="s24compile")
    peers = [(i, row["cusparselt_speedup"]) for i, row in enumerate(rows) if row["cusparselt_speedup"]]
    if peers:
        axes.plot(
            [x for _, x in peers], [i for i, _ in peers], "D", color="#e07b39", ms=3, label="cuSPARSELt, best algorithm"
        )
    axes.axvline(1.0, color="black", lw=1, label="cuBLAS, better of two layouts")
    axes.axvline(results["geomean"], color="#2a78d6", lw=1, ls="--", label=f"geometric mean {results['geomean']:.2f}")
    axes.set_yticks(list(places), labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel(f"speed over cuBLAS {dtype} (same run, GPU time)")
    axes.set_title(f"2:4 GEMM in {dtype} on {results['machine']['gpu']}, {results['date']}", fontsize=9)
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
