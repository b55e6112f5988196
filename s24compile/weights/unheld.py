"""Says that weights train which no optimizer steps: nothing counts for them, and nothing decays them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from s24compile.weights.sparse_weight import SparseWeight

log = logging.getLogger("s24compile")

UNHELD_STEPS = 40
"""Steps of optimizers that do not hold a weight, or edits where none steps, after which a training forward says so."""


def warn_of_unheld(weights: Sequence[SparseWeight]) -> None:
    """Says once a weight that it trains and no optimizer seen so far holds it, or that there is none at all."""
    training = [
        weight
        for weight in dict.fromkeys(weights)
        if not (weight.held or weight.said_unheld) and (p := weight.parameter()) is not None and p.requires_grad
    ]
    missed = [weight for weight in training if weight.steps_missed >= UNHELD_STEPS]
    edited = [weight for weight in training if weight.edits >= UNHELD_STEPS and not weight.steps_missed]
    for weight in (*missed, *edited):
        weight.said_unheld = True
    if missed:
        log.warning(
            "optimizers have made %d steps, none of them with %s, which trains sparse: its masks and phases follow the "
            "steps of any optimizer, but no masked decay reaches it. Is the parameter in the optimizer? (Optimizers "
            "that are no torch.optim.Optimizer are not seen.)",
            UNHELD_STEPS,
            _names(missed),
        )
    if edited:
        log.warning(
            "%s, which trains sparse, was written before %d forwards, and no torch.optim.Optimizer has stepped: masks, "
            "phases (dense_after, total_steps) and masked decay go by their steps, and stand still. Derive what "
            "updates the weights from torch.optim.Optimizer, or call s24compile.refresh(model, search=True) and "
            "s24compile.set_phase(model, ...) when they are due.",
            _names(edited),
            UNHELD_STEPS,
        )


def _names(weights: Sequence[SparseWeight]) -> str:
    names = [weight.name for weight in weights]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} other weights"
