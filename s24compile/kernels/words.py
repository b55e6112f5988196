"""The words that ops take: what a string argument may be, by its name. A leaf beside the formats.

No kernel has a default for a word that it does not know; whoever calls an op is told here.
"""

from __future__ import annotations

from s24compile.kernels.activations import DENSE, SPARSE
from s24compile.kernels.format import FORMATS

WORDS: dict[str, tuple[str, ...]] = {
    "act": DENSE,
    "activation": SPARSE,
    "gate": ("first", "second"),  # which half of a GLU's input the activation sees
    "kind": ("transposable", "rows"),  # what pattern numbers stand for: patterns.py
    "select": ("transposable", "magnitude", "soft_threshold"),
    "format": tuple(FORMATS),
    "out_layout": ("row", "col"),
    **dict.fromkeys(("weight_layout", "up_layout", "down_layout"), ("out_in", "in_out")),
    "dx": ("sparse", "dense", "mvue"),
    **dict.fromkeys(("dw", "dw_up", "dw_down"), ("mvue", "dense")),
    "layout": ("row", "col", "both"),  # what `quantise` writes of a matrix: itself, its transpose
}
