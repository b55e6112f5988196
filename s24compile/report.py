"""What was rewritten, what was refused, and why: the rows behind `explain()`, the log and the command line."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Site:
    """One feed-forward layer (or one linear, with targets="linear") that the passes looked at.

    `reason` is a sentence: for a refusal why, for a rewrite what is worth knowing (or empty).
    """

    path: str
    """Module path as in `named_modules()`, e.g. "blocks.0.mlp"; of the down projection's parent where it has one."""
    family: str
    """"gelu", "swiglu", "geglu", "linear", ...: activation and gating, the name of the pattern that matched."""
    shape: str
    """Model and hidden width, e.g. "64 -> 256 -> 64"."""
    status: Literal["rewritten", "refused"]
    reason: str = ""
    source: str = ""
    """The user's own line, "file.py:12"."""
    weights: tuple[str, ...] = ()
    """Parameter names (without `_orig_mod.`) in the order gate, up, down."""
    linears: int = 0
    """How many of the layer's matmuls are 2:4 now."""
    rule: str = ""
    """The rule that rewrote it, for S24_FUEL bisection."""
