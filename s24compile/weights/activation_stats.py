"""How sparse the hidden states of a model are, and what keeping two of four drops of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from s24compile.weights.following import follow
from s24compile.weights.hidden_state import STATES, HiddenState
from s24compile.wrappers import named_parameters, unwrapped


@dataclasses.dataclass(frozen=True)
class ActivationStats:
    """The hidden state of one layer of recipe="activation" in its last 2:4 forward; None before the first.

    The hidden state is what the last projection reads: behind the activation and its dropout.
    """

    nonzero: float | None
    """Share of its elements that are not zero."""
    over: float | None
    """Share of its groups of four neighbours that have more than two of them, and so lose some."""
    dropped: float | None
    """Share of its sum that was dropped."""
    tokens: int | None
    """Tokens of that forward."""


def activation_stats(model: nn.Module) -> dict[str, ActivationStats]:
    """Module path -> statistics of each layer that recipe="activation" has taken in a forward so far.

    A path is that of the innermost module that holds the layer's projections, as in `explain()`; where several layers
    have one, that of the last projection. Costs one host sync; counting itself costs none, in no step.

    Raises:
        ModelError: `model` is no module.
    """
    states = states_of(model)
    return dict(zip(states, stats_of(list(states.values())), strict=True))


def states_of(model: nn.Module) -> dict[str, HiddenState]:
    """Module path -> state of each layer."""
    follow(unwrapped(model))
    names = {id(parameter): name for name, parameter in named_parameters(model)}
    found = [(state, name) for name, p in named_parameters(model) if (state := STATES.get(p)) is not None]
    owners = [[name, *_known(state, names)] for state, name in found]
    paths = [_common([name.rpartition(".")[0] for name in own]) for own in owners]
    return {
        path if paths.count(path) == 1 else own[0].rpartition(".")[0]: state
        for path, own, (state, _) in zip(paths, owners, found, strict=True)
    }


def stats_of(states: Sequence[HiddenState]) -> list[ActivationStats]:
    """The statistics of several layers, with one host sync for all."""
    totals = [total_counts(state) for state in states]
    known = [total for total in totals if total is not None]
    values = iter(torch.stack([t.to(known[0].device) for t in known]).tolist() if known else ())
    return [
        ActivationStats(None, None, None, None) if total is None else stats_of_counts(next(values), _width(state))
        for total, state in zip(totals, states, strict=True)
    ]


def total_counts(state: HiddenState) -> Tensor | None:
    """[elements, non-zeros, groups with more than two, dropped, whole] of a layer's last forward, fp64 on its
    device."""
    return None if state.counts is None else state.counts.sum((0, 1), dtype=torch.float64)


def stats_of_counts(counts: Sequence[float], width: int) -> ActivationStats:
    """Shares of such totals; 0 where there is nothing to share."""
    elements, nonzero, over, dropped, whole = counts
    return ActivationStats(
        nonzero=nonzero / elements if elements else 0.0,
        over=4 * over / elements if elements else 0.0,
        dropped=dropped / whole if whole else 0.0,
        tokens=round(elements / width),
    )


def _width(state: HiddenState) -> int:
    """F: input features of the last projection."""
    rows, cols = state.schedule.shape
    return cols if state.schedule.layout == "out_in" else rows


def _known(state: HiddenState, names: Mapping[int, str]) -> list[str]:
    partners = [partner() for partner in state.partners]
    return [names[id(partner)] for partner in partners if id(partner) in names]


def _common(paths: Sequence[str]) -> str:
    """The innermost module that holds all of them."""
    shared = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) != 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
