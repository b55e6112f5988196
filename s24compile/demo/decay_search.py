"""The search for masked decay's lambda by flip rates [FST, arXiv 2404.01847, 4.3], on the example GPT.

For each candidate, mu = r_sparse / r_dense: how much of the masks flips between two searches in the sparse run, over
how much of the masks that its weights would have flips in a dense run; same seed, batches and steps. mu in [0.60, 0.95]
is healthy, mu >= 1 harms. A few searches during warm-up are enough, which is what makes this cheap.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import torch

from s24compile import ops
from s24compile.demo.comparison import ffn_weights
from s24compile.demo.text import ByteText
from s24compile.demo.training import Run, TrainConfig

HEALTHY = (0.60, 0.95)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One lambda and what came of it."""

    decay: float
    flip_rates: tuple[float, ...]
    """Share of mask entries that changed, one for each search after the first."""
    mu: float
    """Mean flip rate over the dense run's."""

    @property
    def healthy(self) -> bool:
        """Whether mu lies where the paper wants it."""
        return HEALTHY[0] <= self.mu <= HEALTHY[1]


def search(
    config: TrainConfig,
    text: ByteText,
    decays: Sequence[float],
    searches: int,
    advance: Callable[[Run], None] = lambda run: None,
) -> tuple[tuple[float, ...], list[Candidate]]:
    """Returns the dense run's flip rates and a Candidate for each of `decays`, in their order.

    Args:
        config: settings of the runs; the mask interval is that of its s24 options. `max_iters` only shapes the
            learning rate: each run stops after `searches` intervals.
        searches: mask searches after the first one, at least 1.
        advance: called after every step of every run.
    """
    options = dict(config.options)
    interval = int(options.get("mask_interval", 40))
    dense = _flip_rates(dataclasses.replace(config, backend="inductor", options=()), text, interval, searches, advance)
    reference = statistics.fmean(dense)
    candidates = []
    for decay in decays:
        own = dataclasses.replace(config, options=tuple(sorted({**options, "decay": decay}.items())))
        rates = _flip_rates(own, text, interval, searches, advance)
        mu = statistics.fmean(rates) / reference if reference else float("inf")
        candidates.append(Candidate(decay, rates, mu))
    return dense, candidates


def suggestion(candidates: Sequence[Candidate]) -> Candidate | None:
    """The smallest healthy lambda: it calms the masks and disturbs the weights least. None if none is healthy."""
    return min((c for c in candidates if c.healthy), key=lambda c: c.decay, default=None)


def _flip_rates(
    config: TrainConfig, text: ByteText, interval: int, searches: int, advance: Callable[[Run], None]
) -> tuple[float, ...]:
    torch.compiler.reset()
    # The validation loss is not looked at; its graph would only cost compile time.
    run = Run(dataclasses.replace(config, eval_interval=config.max_iters + 1), text)
    before = _masks(run)
    rates = []
    for step in run.steps():
        advance(run)
        if step % interval == 0:
            after = _masks(run)
            rates.append(statistics.fmean(ops.flip_rate(b, a) for b, a in zip(before, after, strict=True)))
            before = after
        if len(rates) == searches:
            break
    return tuple(rates)


def _masks(run: Run) -> list[torch.Tensor]:
    """The transposable masks of the present weights: those that a search at this step finds."""
    weights = dict(run.model.named_parameters())
    return [ops.transposable_mask(weights[name].detach().float()) for name in ffn_weights(run)]
