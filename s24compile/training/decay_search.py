"""What a search for masked decay's lambda found: its runs, the choice among them, and both as a table. A leaf."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Trial:
    """One short run."""

    decay: float | None
    """Lambda; None for the dense run."""
    flip_rates: tuple[float, ...]
    """Per optimizer step, from the second one on, over all sparse weights."""
    losses: tuple[float, ...]
    """What the training step returned, per step; empty if it returned nothing."""
    mu: float
    """Flip rate of the last half of the steps, over that of the dense run."""


@dataclasses.dataclass(frozen=True)
class DecaySearch:
    """The outcome of `tune_decay`. `str()` is a table."""

    dense: Trial
    trials: tuple[Trial, ...]
    """One per candidate, in ascending order of lambda."""
    feasible: tuple[float, float]

    @property
    def chosen(self) -> float | None:
        """The feasible candidate whose mu is nearest to the middle of the range; None if none is feasible."""
        low, high = self.feasible
        inside = [trial for trial in self.trials if low <= trial.mu <= high]
        return min(inside, key=lambda trial: abs(trial.mu - (low + high) / 2)).decay if inside else None

    @property
    def advice(self) -> str:
        """The outcome in one sentence."""
        low, high = self.feasible
        if self.chosen is not None:
            return f"take decay={self.chosen:g}"
        above = [trial.decay or 0.0 for trial in self.trials if trial.mu > high]
        below = [trial.decay or 0.0 for trial in self.trials if trial.mu < low]
        if not below:
            return f"no candidate brings mu down to {high:g}: try values above {max(above):g}"
        if not above:
            return f"every candidate brings mu under {low:g}: try values below {min(below):g}"
        low_end, high_end = sorted((max(above), min(below)))
        return f"no candidate is in range: try values between {low_end:g} and {high_end:g}"

    def verdict(self, trial: Trial) -> str:
        """ "feasible", "harms" (mu >= 1) or nothing."""
        low, high = self.feasible
        if trial.decay is None:
            return ""
        return "feasible" if low <= trial.mu <= high else "harms" if trial.mu >= 1 else ""

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """The table: decay, flip rate, mu, loss, verdict; flip rate and loss are means over the judged steps."""
        return [
            (
                "dense" if trial.decay is None else f"{trial.decay:g}",
                f"{last_half(trial.flip_rates):.2e}",
                f"{trial.mu:.3f}",
                f"{last_half(trial.losses):.4f}" if trial.losses else "-",
                self.verdict(trial),
            )
            for trial in (self.dense, *self.trials)
        ]

    def __str__(self) -> str:
        rows = [("decay", "flip rate", "mu", "loss", ""), *self.rows()]
        lines = [f"{a:>8}  {b:>9}  {c:>6}  {d:>8}  {e}".rstrip() for a, b, c, d, e in rows]
        return "\n".join([*lines, self.advice])


def last_half(values: Sequence[float]) -> float:
    """Mean over the last half of the steps, which are the judged ones."""
    half = values[len(values) // 2 :]
    return sum(half) / len(half)
