"""What one run is: everything that it depends on, but for the machine."""

from __future__ import annotations

import dataclasses

from benchmarks.quality.sizes import Size
from benchmarks.quality.variants import Variant


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model of one size, one variant, one number of steps, one seed."""

    size_name: str
    size: Size
    variant: Variant
    steps: int
    """Optimizer steps of a run of full length."""
    seed: int = 1
    window: int = 20
    """Steps of a line in the file; the device is waited for once a window."""
    validate_every: int = 200
    inner: str = "inductor"
    """What compiles the rewritten graph (tests take "aot_eager")."""

    @property
    def length(self) -> int:
        """Optimizer steps of this run."""
        return max(1, round(self.steps * self.variant.length))

    @property
    def file_name(self) -> str:
        """Without suffix; one run has one name."""
        variant = self.variant.name.replace("/", "of")
        return f"{self.size_name}-{self.steps}-{variant}-seed{self.seed}"
