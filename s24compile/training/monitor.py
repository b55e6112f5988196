"""Flip rates, and what 2:4 hidden states hold, for the user's logger: TensorBoard's SummaryWriter, or any callable
(wandb.log, a list's append, ...).

They are read from the device only at the steps that are logged, all with one host sync; between them the hook costs
a comparison.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from s24compile.errors import ModelError, OptionError
from s24compile.training.flip_rate import flip_rates, rate_over_elements
from s24compile.training.hooks import held_by, watch_optimizers
from s24compile.weights.activation_stats import ActivationStats, activation_stats, states_of
from s24compile.weights.model_state import sparse_weights
from s24compile.weights.sparse_weight import SparseWeight


class ScalarWriter(Protocol):
    """TensorBoard's `SummaryWriter`, and what looks like it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Writes one point of one curve."""


Writer = ScalarWriter | Callable[[Mapping[str, float], int], Any]


def log_flip_rates(model: nn.Module, writer: Writer, *, every: int = 40, prefix: str = "s24") -> RemovableHandle:
    """Logs the model's flip rates after every `every`-th optimizer step, until `.remove()` of what it returns.

    Curves, by `prefix`: `s24/flip_rate` over all elements, `s24/flip_rate/<parameter name>` for each weight (both from
    the second mask search on), `s24/sparse_share`, the share of the weights that is in its sparse phase. The step is
    that of the weights, which a resumed run continues. May be called before the model has become sparse.

    Args:
        writer: has `add_scalar(tag, value, step)`, or is called with (values by tag, step).
        every: optimizer steps; a multiple of `mask_interval` is enough, since rates only change at a search.

    Raises:
        OptionError: `every` is no positive integer.
        ModelError: a writer that is neither, or a model that is no module.
    """
    _check("log_flip_rates", writer, every)
    sparse_weights(model)  # refuses what is no module now, not at the first step

    def weights_of(alive: nn.Module) -> list[SparseWeight]:
        return list(sparse_weights(alive).values())

    return _after_steps(
        model, writer, every, weights_of, lambda alive: flip_rate_scalars(sparse_weights(alive), prefix)
    )


def log_activation_stats(model: nn.Module, writer: Writer, *, every: int = 40, prefix: str = "s24") -> RemovableHandle:
    """Logs what the hidden states of recipe="activation" hold after every `every`-th optimizer step, as
    `log_flip_rates` does flip rates.

    Curves, by `prefix`: `s24/nonzero`, `s24/over` and `s24/dropped`, the means over all layers of the shares that
    `activation_stats` gives, and the same for each layer, `s24/dropped/<module path>`; from the first 2:4 forward on.

    Args:
        writer, every: as in `log_flip_rates`.

    Raises:
        OptionError: `every` is no positive integer.
        ModelError: a writer that is neither, or a model that is no module.
    """
    _check("log_activation_stats", writer, every)
    states_of(model)

    def schedules_of(alive: nn.Module) -> list[SparseWeight]:
        return [state.schedule for state in states_of(alive).values()]

    return _after_steps(
        model, writer, every, schedules_of, lambda alive: activation_scalars(activation_stats(alive), prefix)
    )


def _check(name: str, writer: object, every: object) -> None:
    """Refuses a writer and an interval that nothing can be logged with."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise OptionError(name="every", value=every, accepted="it must be an integer >= 1")
    if not callable(getattr(writer, "add_scalar", None)) and not callable(writer):
        raise ModelError(
            what=name,
            found=f"the writer is a {type(writer).__name__}",
            accepted="it must have add_scalar(tag, value, step), or be callable with (values, step)",
        )


def _after_steps(
    model: nn.Module,
    writer: Writer,
    every: int,
    weights_of: Callable[[nn.Module], list[SparseWeight]],
    scalars_of: Callable[[nn.Module], Mapping[str, float]],
) -> RemovableHandle:
    """Calls the writer with a model's scalars after every `every`-th step of its weights."""
    add_scalar = getattr(writer, "add_scalar", None)
    watch_optimizers()  # whose hook counts the steps, and so must have run when ours does
    owner = weakref.ref(model)
    logged: list[int] = []

    def after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        alive = owner()
        if alive is None:  # not removed here: torch is iterating over its hooks
            return
        steps = max((weight.steps for _, weight in held_by(optimizer)), default=0)
        if steps == 0 or steps % every or steps in logged:
            return
        # Another model's optimizer, or one of several that hold this model's weights and is behind.
        if steps != max((weight.steps for weight in weights_of(alive)), default=0):
            return
        logged[:] = [steps]  # a nested super().step() comes here twice
        values = scalars_of(alive)
        if callable(add_scalar):
            for tag, value in values.items():
                add_scalar(tag, value, steps)
        else:
            writer(values, steps)  # type: ignore[operator]

    # Under torch.compile(optimizer.step) the hook must run as it is, see `hooks.watch_optimizers`.
    return register_optimizer_step_post_hook(cast(Any, torch.compiler.disable(after_step)))


def activation_scalars(stats: Mapping[str, ActivationStats], prefix: str) -> dict[str, float]:
    """The points that `log_activation_stats` logs, by tag."""
    values: dict[str, float] = {}
    for field in ("nonzero", "over", "dropped"):
        shares = {path: share for path, found in stats.items() if (share := getattr(found, field)) is not None}
        if shares:
            values[f"{prefix}/{field}"] = sum(shares.values()) / len(shares)
        values |= {f"{prefix}/{field}/{path}": share for path, share in shares.items()}
    return values


def flip_rate_scalars(weights: Mapping[str, SparseWeight], prefix: str) -> dict[str, float]:
    """The points that `log_flip_rates` logs, by tag. One host sync."""
    states = list(weights.values())
    rates = flip_rates(states)
    points = {f"{prefix}/flip_rate": rate_over_elements(states, rates)}
    points |= {f"{prefix}/flip_rate/{name}": rate for name, rate in zip(weights, rates, strict=True)}
    values = {tag: rate for tag, rate in points.items() if rate is not None}
    values[f"{prefix}/sparse_share"] = sum(weight.phase == "sparse" for weight in weights.values()) / len(weights)
    return values
