"""The parts of README.md that are made."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from benchmarks.tables import losses, speeds
from benchmarks.tables.markdown import refilled

README = Path(__file__).parents[2] / "README.md"
CHOICES = {
    "dense": "dense",
    "dense, hidden layers 12 to 16% narrower": "narrow=2688 narrow=1728",
    "`fst-down`": "fst-l1-no-mvue-down-head1/6",
    "`fst-exact`": "fst-l1-no-mvue-head1/6",
    "`fst`": "fst",
    "dense, half of the hidden width": "half",
}
"""What a user may choose -> the variants that were trained."""


def loss_table() -> str:
    """Time and loss of each choice, in short runs and in a long one."""
    return losses.choices(CHOICES, ("124m", 4000), [("124m", 4000), ("30m", 6000), ("30m", 16000)])


def speed_table() -> str:
    """Layers, a block, whole steps, and the matrix products in a sentence."""
    gemm = speeds.read("gemm")
    products = (
        f"The {len(gemm['shapes'])} matrix products of such layers alone are {gemm['geomean']:.2f} times as fast as "
        f"dense ones (geometric mean; the least {gemm['least']:.2f})."
    )
    options = (
        'Layers and the block train by the default recipe, `fst`; each training step by `fst` or by `gradient="auto"`, '
        "whichever was faster."
    )
    text = textwrap.fill(f"{options} {products}", 120, break_on_hyphens=False)
    return f"{speeds.everything()}\n\n{text}\n\n{speeds.measured_on('ffn', 'block', 'nanogpt', 'gemm')}"


BLOCKS: Mapping[str, Callable[[], str]] = MappingProxyType({"speeds": speed_table, "losses": loss_table})


def made(text: str) -> str:
    """README.md with its tables as the results have them."""
    return refilled(text, BLOCKS)
