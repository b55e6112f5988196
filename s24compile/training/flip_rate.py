"""Flip rates: how much of the masks each search changes, and a warning in words when that does not calm down.

A flip rate here is |M_t - M_{t-1}|_1 / D between two successive searches [FST 4.1]; the paper's r_t is the same for
masks searched at every step. Healthy training rises, then decays towards 0. The paper calls it an explosion when the
rate stays above that of a dense run; no dense run is at hand here, so the rule is a plainer one, which only speaks
when there is little doubt: see `is_exploding`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import weakref
from collections.abc import Sequence

import torch

from s24compile.weights.sparse_weight import SparseWeight

log = logging.getLogger("s24compile")

LOOK_EVERY = 40
"""Optimizer steps between two looks. A look stops the host once, so it is not taken at every step."""

CALM_LOOKS = 5
"""Looks that are compared with the same number before them, and the looks after the start that are not judged."""


@dataclasses.dataclass
class History:
    """What `watch_flips` remembers of one weight."""

    rates: list[float] = dataclasses.field(default_factory=list)
    """At each look, oldest first; only as many as are judged."""
    warned: bool = False


_HISTORY: weakref.WeakKeyDictionary[SparseWeight, History] = weakref.WeakKeyDictionary()


def history_of(weight: SparseWeight) -> History:
    """A copy of what is remembered of a weight."""
    return dataclasses.replace(_HISTORY.get(weight) or History())


def set_history(weight: SparseWeight, history: History) -> None:
    """Replaces what is remembered of a weight."""
    _HISTORY[weight] = dataclasses.replace(history)


def flip_rates(weights: Sequence[SparseWeight]) -> list[float | None]:
    """The flip rate of each weight (None before its second search), with one host sync for all."""
    flips = [weight.flips() for weight in weights]
    known = [flip for flip in flips if flip is not None]
    if not known:
        return [None] * len(flips)
    values = iter(torch.stack([flip.to(known[0].device) for flip in known]).tolist())
    return [None if flip is None else next(values) for flip in flips]


def global_flip_rate(weights: Sequence[SparseWeight]) -> float | None:
    """The flip rate over all elements of these weights, with one host sync; None before any second search."""
    return rate_over_elements(weights, flip_rates(weights))


def rate_over_elements(weights: Sequence[SparseWeight], rates: Sequence[float | None]) -> float | None:
    """The rate over all elements of those weights whose rate is known; None where none is."""
    pairs = [
        (rate, weight.shape[0] * weight.shape[1])
        for rate, weight in zip(rates, weights, strict=True)
        if rate is not None
    ]
    total = sum(count for _, count in pairs)
    return sum(rate * count for rate, count in pairs) / total if total else None


def is_exploding(rates: Sequence[float], interval: int = 40) -> bool:
    """Whether a history of flip rates, oldest first, is that of an explosion.

    It is when, after CALM_LOOKS looks of start-up and twice CALM_LOOKS more, the mean of the last CALM_LOOKS looks is
    both large and higher than the mean of the CALM_LOOKS before them: large, and growing when it should be falling.

    Large means above 0.25 for masks searched every 40 steps: masks drawn anew at random differ in 0.5 of their
    elements, so half of the memory is gone. With fewer steps between searches less can change; by the square root,
    as in a random walk: 0.04 for masks searched at every step, where healthy runs peak at 0.01.
    """
    judged = rates[CALM_LOOKS:]
    if len(judged) < 2 * CALM_LOOKS:
        return False
    before = sum(judged[-2 * CALM_LOOKS : -CALM_LOOKS]) / CALM_LOOKS
    last = sum(judged[-CALM_LOOKS:]) / CALM_LOOKS
    return last > 0.25 * math.sqrt(min(interval, 40) / 40) and last > before


def watch_flips(weights: Sequence[SparseWeight]) -> None:
    """Notes the flip rates of weights that have just been stepped, and warns once a weight if they explode."""
    looked = [weight for weight in weights if weight.steps % LOOK_EVERY == 0 and weight.phase == "sparse"]
    if not looked:
        return
    exploding: list[str] = []
    for weight, rate in zip(looked, flip_rates(looked), strict=True):
        history = _HISTORY.setdefault(weight, History())
        if rate is None:
            continue
        history.rates = [*history.rates[-3 * CALM_LOOKS :], rate]
        if not history.warned and is_exploding(history.rates, _interval(weight)):
            history.warned = True
            exploding.append(f"{weight.name} {history.rates[-1]:.3f}")
    if exploding:
        log.warning(
            "flip-rate explosion: the masks of %d weight(s) keep changing, and more so than before (share of the mask "
            "changed by the last search: %s). The model is unlikely to settle; %s.",
            len(exploding),
            ", ".join(exploding[:8]) + (", ..." if len(exploding) > 8 else ""),
            _advice(looked[0]),
        )


def _interval(weight: SparseWeight) -> int:
    return (weight.config.mask_interval or 1) if weight.recipe.uses_interval else 1


def _advice(weight: SparseWeight) -> str:
    if weight.recipe.decay_on is None:
        return f"lower the learning rate, or take a recipe with masked decay (recipe={weight.recipe.name!r} has none)"
    searches = f", or search less often (mask_interval={weight.config.mask_interval})"
    return f"raise decay (now {weight.decay:g}; `s24 tune-decay` searches for it), or lower the learning rate" + (
        searches if weight.recipe.uses_interval else ""
    )
