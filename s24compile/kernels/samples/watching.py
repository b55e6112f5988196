"""Sample inputs of the ops on samples of weights."""

from __future__ import annotations

from collections.abc import Iterator

from s24compile.kernels.samples.maker import Maker, Sample, Samples
from s24compile.kernels.watch.sample import sampled


def _copies(make: Maker) -> Iterator[Sample]:
    for note, weights in (
        ("one", [make.normal(24, 40)]),
        ("several, both layouts, long and short", [make.normal(4, 1100), make.normal(40, 24).t(), make.normal(4, 4)]),
    ):
        yield Sample(note, (weights, [make.normal(sampled(w).numel()) for w in weights]))  # type: ignore[union-attr]


def _comparisons(make: Maker) -> Iterator[Sample]:
    weights = [make.normal(24, 40), make.normal(40, 24).t(), make.normal(4, 1100), make.normal(8, 8)]
    samples = [sampled(w).clone() for w in weights]  # type: ignore[union-attr]
    yield Sample("none differs", (weights, samples, make.numbers(4), 7))
    written = [w.clone() for w in weights]
    written[1][:, 2] += 1.0
    written[2][:, 1099] += 1.0
    yield Sample("some differ", (written, samples, make.numbers(4), 7))


SAMPLES: Samples = {"copy_samples_": _copies, "compare_samples_": _comparisons}
