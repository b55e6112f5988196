"""The search for masked decay's lambda by flip rates [FST 4.3, arXiv 2404.01847], on the user's own training step.

From one moment of the run: a few steps dense, and the same steps with each candidate. At each step masks are computed
from the weights as they are, in the dense run too, where nobody uses them; r is the share of mask elements that a
step changes, and mu = r_sparse / r_dense. Feasible: mu in [0.60, 0.95]. From mu = 1 on sparse training loses accuracy;
far below, the masks freeze before they were explored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from s24compile.errors import ModelError, OptionError
from s24compile.training.decay_search import DecaySearch, Trial, last_half
from s24compile.training.snapshot import HasState, Snapshot
from s24compile.weights.model_state import set_phase, sparse_weights, state_dict
from s24compile.weights.registry import WEIGHTS, told_about
from s24compile.weights.sparse_weight import SparseWeight

CANDIDATES = (1e-6, 6e-6, 2e-5, 6e-5, 2e-4, 6e-4, 2e-3)
"""From the smallest to the largest of the paper's Table 1, a factor of about three apart."""
FEASIBLE = (0.60, 0.95)


def tune_decay(
    model: nn.Module,
    optimizer: Optimizer,
    train_step: Callable[[int], Any],
    *,
    candidates: Sequence[float] = CANDIDATES,
    steps: int = 60,
    also: Sequence[HasState] = (),
    on_step: Callable[[float | None, int], None] | None = None,
) -> DecaySearch:
    """Finds the masked decay that keeps the flip rate at 0.60-0.95 of the dense run's. Best called during warm-up.

    Model, optimizer, gradients, masks, random generators and `also` are as before when it returns, and when it
    raises, by Ctrl-C too; a copy of the first two is held in their devices' memory meanwhile. Nothing is recompiled
    per candidate. Use the outcome as `options={"decay": search.chosen}` if the model has not run yet, else by
    `weight.decay = search.chosen` for each of `s24compile.sparse_weights(model).values()`.

    Args:
        model: the module behind the compiled one, or that one.
        optimizer: it must hold the sparse weights.
        train_step: does step i (from 0) of a short run, forward to `optimizer.step()`, with one step of the optimizer;
            must draw the same batch for the same i. Its return value, if any, is the loss.
        candidates: values of lambda, >= 0.
        steps: length of each run, at least 4; of which the last half is judged.
        also: what else a step changes: learning-rate scheduler, GradScaler, data loader.
        on_step: called after each step with (lambda or None for the dense run, i).

    Raises:
        OptionError: no candidates, one out of range, too few steps, a recipe without masked decay, or an argument that
            is something else.
        ModelError: `model` is no module; or train_step makes no weight sparse, or does not step an optimizer that
            holds them once a call.
    """
    _check_kinds(model, optimizer, train_step, also, on_step)
    tried = _checked(candidates, steps)
    start = Snapshot(model, optimizer, also)

    def trial(decay: float | None) -> tuple[list[Tensor], list[Any]]:
        try:
            set_phase(model, "dense" if decay is None else "sparse")
            _set_decay(start.parameters, decay)
            return _run(model, train_step, steps, decay, on_step)
        finally:
            start.restore()

    dense = _trial(None, *trial(None), reference=None)
    trials = tuple(_trial(decay, *trial(decay), reference=dense) for decay in tried)
    return DecaySearch(dense, trials, FEASIBLE)


def _run(
    model: nn.Module,
    train_step: Callable[[int], Any],
    steps: int,
    decay: float | None,
    on_step: Callable[[float | None, int], None] | None,
) -> tuple[list[Tensor], list[Any]]:
    """Flip rates (0-d tensors, unread: no host sync) and losses of one run."""
    # Also of weights that a checkpoint was loaded for, and that have not been in a forward yet.
    counted = {name: entry["steps"] for name, entry in state_dict(model).items()}
    weights: dict[str, SparseWeight] = {}
    before: list[Tensor] = []
    rates: list[Tensor] = []
    losses: list[Any] = []
    for i in range(steps):
        loss = train_step(i)
        losses.append(loss.detach().clone() if isinstance(loss, Tensor) else loss)
        if i == 0:
            weights = _trained(sparse_weights(model))
        _check_run(weights, counted, i + 1, decay)
        masks = [_mask(weight) for weight in weights.values()]
        if before:
            flips = [(old != new).sum().to(masks[0].device) for old, new in zip(before, masks, strict=True)]
            rates.append(torch.stack(flips).sum() / sum(mask.numel() for mask in masks))
        before = masks
        if on_step is not None:
            on_step(decay, i)
    return rates, losses


@torch.no_grad()
def _mask(weight: SparseWeight) -> Tensor:
    """The mask that a search would find now, whatever the schedule says; bool [N, K]."""
    parameter = weight.parameter()
    assert parameter is not None
    kind = weight.recipe.pattern_kind
    rule = torch.ops.s24.transposable_patterns if kind == "transposable" else torch.ops.s24.magnitude_patterns
    return torch.ops.s24.expand_patterns(rule(weight.logical(parameter)), kind)


def _trial(decay: float | None, rates: list[Tensor], losses: list[Any], *, reference: Trial | None) -> Trial:
    read = tuple(torch.stack(rates).tolist())
    told = [loss for loss in losses if loss is not None]
    if reference is None and last_half(read) == 0:
        raise ModelError(
            what="tune_decay",
            found="no mask element changed in the dense run",
            accepted="the learning rate must not be 0 during the search; take more steps, or start it later",
        )
    mu = 1.0 if reference is None else last_half(read) / last_half(reference.flip_rates)
    return Trial(decay, read, tuple(float(loss) for loss in told), mu)


def _set_decay(parameters: Sequence[Tensor], decay: float | None) -> None:
    for parameter in parameters:
        weight = WEIGHTS.get(parameter)
        if weight is None:
            told_about(parameter).decay = decay
        elif decay is not None:
            weight.decay = decay


def _trained(weights: dict[str, SparseWeight]) -> dict[str, SparseWeight]:
    return {n: w for n, w in weights.items() if (p := w.parameter()) is not None and p.requires_grad}


def _check_run(weights: dict[str, SparseWeight], counted: dict[str, int], done: int, decay: float | None) -> None:
    if not weights:
        raise ModelError(
            what="tune_decay",
            found="train_step made no weight of the model sparse",
            accepted="it must call the model compiled with backend='s24'; s24compile.explain(model, *inputs) says what "
            "is refused and why",
        )
    for name, weight in weights.items():
        if weight.recipe.decay_on is None:
            raise OptionError(
                name="recipe",
                value=weight.recipe.name,
                accepted="it has no masked decay to tune; 'fst', 'fst-exact', 'fst-down' and 'srste' have one",
            )
        if decay is not None and weight.phase == "dense":
            raise OptionError(
                name="dense_after", value=weight.config.dense_from, accepted="the search needs sparse steps after it"
            )
        made = weight.steps - counted.get(name, 0)
        if made != done:
            raise ModelError(
                what="tune_decay",
                found=f"after {done} calls of train_step the optimizers that hold {name!r} have made {made} steps",
                accepted="each call must step the optimizer once, and it must hold the sparse weights",
            )


def _check_kinds(model: object, optimizer: object, train_step: object, also: object, on_step: object) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            what="tune_decay", found=f"a {type(model).__name__} was given", accepted="pass the nn.Module to be trained"
        )
    stateful = isinstance(also, Sequence) and all(
        hasattr(each, "state_dict") and hasattr(each, "load_state_dict") for each in also
    )
    checks = (
        ("optimizer", optimizer, isinstance(optimizer, Optimizer), "it must be a torch.optim.Optimizer"),
        ("train_step", train_step, callable(train_step), "it must be a function of the step's index"),
        ("also", also, stateful, "it must be a sequence of objects with state_dict and load_state_dict"),
        ("on_step", on_step, on_step is None or callable(on_step), "it must be a function of (lambda, i), or None"),
    )
    for name, value, fine, accepted in checks:
        if not fine:
            raise OptionError(name=name, value=value, accepted=accepted)


def _checked(candidates: Sequence[float], steps: int) -> list[float]:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 4:
        raise OptionError(name="steps", value=steps, accepted="it must be an integer >= 4")
    given = list(candidates) if isinstance(candidates, Iterable) else []
    numbers = [c for c in given if isinstance(c, (int, float)) and not isinstance(c, bool)]
    if not given or len(numbers) != len(given) or not all(math.isfinite(c) and c >= 0 for c in numbers):
        raise OptionError(
            name="candidates", value=candidates, accepted="they must be finite numbers >= 0, at least one"
        )
    return sorted({float(c) for c in numbers})
