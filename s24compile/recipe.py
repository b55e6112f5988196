"""The training recipes as rows of one table. A leaf: what each recipe means to the weight state and to the passes.

Those of `RECIPES` prune weights. `ACTIVATION` prunes none: it takes the zeros that hidden states have by themselves.

Sources: [FST] arXiv 2404.01847; [S-STE] arXiv 2409.09099; [STEP] Lu et al., ICML 2023; [SR-STE] Zhou et al., ICLR 2021.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Select = Literal["transposable", "magnitude", "soft_threshold"]
PatternKind = Literal["transposable", "rows"]
InputGradient = Literal["sparse", "dense", "mvue"]
Targets = Literal["ffn", "down", "linear"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One recipe: what it does, and the values of those fields of `Config` that are the recipe's own."""

    name: str
    select: Select
    """How the kept positions (and, for "soft_threshold", the values) are chosen from the weights."""
    dx: InputGradient
    """Input gradient: "sparse" multiplies by the packed W^T, which only transposable masks allow. What
    `Config.input_gradient="auto"` means."""
    decay_on: Literal["gradient", "weight"] | None
    """Masked decay: added to the gradient [FST 4.2], taken from the weight [SR-STE Eq. 8], or none."""
    uses_interval: bool
    """True: positions are searched every `Config.mask_interval` optimizer steps. False: at every pack."""
    optimizer_drives_phase: bool = False
    """True: `AdamW_STEP`, where it holds the weight, says when it is dense. Under another optimizer it is sparse."""
    starts_dense: bool = False
    """True: dense for the first sixth of `Config.total_steps`."""
    ends_dense: bool = False
    """True: dense for the last sixth of it."""
    targets: Targets = "ffn"
    """Which linears are taken, where `Config.targets` is not given; the next three likewise."""
    gradient: Literal["mvue", "auto", "dense"] = "mvue"
    """Weight gradient."""
    decay: float | None = 6e-5
    """Lambda; without `decay_on` of no effect."""
    mask_interval: int | None = 40
    """Optimizer steps between searches; without `uses_interval` of no effect. None, as above: refused if given."""
    dense_until: int | None = None
    """Optimizer steps at the start that are dense unless others are given."""

    def dx_for(self, input_gradient: Literal["auto", "dense", "mvue"]) -> InputGradient:
        """The input gradient under `Config.input_gradient`."""
        return self.dx if input_gradient == "auto" else input_gradient

    @property
    def soft(self) -> bool:
        """Whether packed values differ from the kept weights (soft threshold and scale)."""
        return self.select == "soft_threshold"

    @property
    def pattern_kind(self) -> PatternKind:
        """How pattern bytes are drawn: one per 4x4 block (90 codes), or one per group of four (6 codes)."""
        return "transposable" if self.select == "transposable" else "rows"


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            # [FST]
            Recipe("fst", "transposable", "sparse", "gradient", uses_interval=True, ends_dense=True),
            # The same with exact weight gradients; of the recipes that take whole layers the one that lost least
            # (docs/quality.md).
            Recipe(
                "fst-exact", "transposable", "sparse", "gradient",
                uses_interval=True, starts_dense=True, ends_dense=True, gradient="dense", mask_interval=1,
            ),
            # That in the down projections alone: ends where dense does in short runs, above it in long ones
            # (docs/quality.md).
            Recipe(
                "fst-down", "transposable", "sparse", "gradient",
                uses_interval=True, starts_dense=True, ends_dense=True, targets="down", gradient="dense",
                mask_interval=1,
            ),
            # [S-STE]
            Recipe("sste", "soft_threshold", "dense", None, uses_interval=False),
            # [STEP]
            Recipe("step", "magnitude", "dense", None, uses_interval=False, optimizer_drives_phase=True),
            # [SR-STE]
            Recipe("srste", "magnitude", "dense", "weight", uses_interval=False, decay=2e-4),
            # [FST 4.1], as the baseline there
            Recipe("ste", "magnitude", "dense", None, uses_interval=False),
        )
    }
)  # fmt: skip

# Half of a hidden state is positive at first, and it takes some hundred steps until few groups of four have more than
# two non-zeros. `select` and `dx` are those of the hidden state: the two largest of four, and exact.
ACTIVATION = Recipe(
    "activation", "magnitude", "sparse", None,
    uses_interval=False, decay=None, mask_interval=None, dense_until=300,
)  # fmt: skip
"""2:4 hidden states of ReLU and squared-ReLU layers. [arXiv 2503.16672]"""

NAMES: tuple[str, ...] = (*RECIPES, ACTIVATION.name)


def recipe_of(name: str) -> Recipe:
    """The recipe of a name in `NAMES`."""
    return ACTIVATION if name == ACTIVATION.name else RECIPES[name]
