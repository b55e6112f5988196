"""Sample inputs of the ops on weights: masks, packing, masked decay."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from s24compile.kernels import format as layouts
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.samples.maker import FORMATS, Maker, Sample, Samples


def _weights(make: Maker) -> Iterator[Sample]:
    yield Sample("several blocks", (make.normal(72, 136),))
    yield Sample("ties", (make.grid(64, 64),))
    yield Sample("transposed", (make.normal(68, 132).t(),))
    yield Sample("pitch and offset", (make.strided(64, 128),))
    yield Sample("empty", (make.normal(0, 8),))


def _patterns(make: Maker) -> Iterator[Sample]:
    w = make.normal(24, 40)
    yield Sample("blocks", (masks.transposable_patterns(w), "transposable"))
    yield Sample("rows", (masks.magnitude_patterns(w), "rows"))


def _flips(make: Maker) -> Iterator[Sample]:
    yield Sample("two masks", (make.normal(8, 12) > 0, make.normal(8, 12) > 0))
    yield Sample("transposed", ((make.normal(8, 12) > 0).t(), make.normal(12, 8) > 0))
    yield Sample("empty", (make.normal(0, 12) > 0, make.normal(0, 12) > 0))


def _pack(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        w = make.normal(72, 136)
        yield Sample(f"{format}, transposable mask", (w, masks.transposable_mask(w), make.dtype, format))
        yield Sample(f"{format}, no mask", (w.masked_fill(~masks.magnitude_mask(w), 0.0), None, make.dtype, format))
        thin = masks.magnitude_mask(w) & (make.normal(72, 136) > 0)
        yield Sample(f"{format}, fewer than two ones", (w, thin, make.dtype, format))
        sliced = make.strided(20, 44).t()
        yield Sample(f"{format}, strided", (sliced, masks.magnitude_mask(sliced), make.dtype, format))
    gated = make.normal(80, 136)
    yield Sample("sm90_gated", (gated, masks.transposable_mask(gated), make.dtype, "sm90_gated"))


def _unpack(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        yield Sample(format, make.operand(72, 136, format))
        yield Sample(f"{format}, odd k", make.operand(20, 22, format))
    yield Sample("sm90_gated", make.operand(80, 22, "sm90_gated"))


def _pack_both(make: Maker) -> Iterator[Sample]:
    for format in (*FORMATS, "sm90_gated"):
        w = make.normal(80, 136)
        yield Sample(format, (w, masks.transposable_mask(w), make.dtype, format))


def _pack_weight(make: Maker) -> Iterator[Sample]:
    for format in (*FORMATS, "sm90_gated"):
        for layout in ("out_in", "in_out"):
            for select in ("transposable", "magnitude", "soft_threshold"):
                rows = (40, 40) if format == "sm90_gated" else (68, 12)
                weights = [make.normal(n, 72).float() for n in rows]
                find = masks.transposable_patterns if select == "transposable" else masks.magnitude_patterns
                patterns = [find(w) for w in weights]
                across = layouts.FORMATS[format].transposed
                transposed = make.packed(72, 80, across) if select == "transposable" else (None, None)
                scale = torch.tensor(1.5, device=make.device) if select == "soft_threshold" else None
                if layout == "in_out":
                    weights = [w.t().contiguous() for w in weights]
                options = (scale, select, layout == "out_in", format, layout)
                buffers = (patterns, *make.packed(80, 72, format), *transposed)
                yield Sample(f"{format}, {layout}, {select}", (weights, *buffers, *options))


def _pack_weights(make: Maker) -> Iterator[Sample]:
    for one, other in zip(_pack_weight(make), _pack_weight(make), strict=True):
        if "soft_threshold" in one.note:  # takes scales, which only the op of one operand has
            continue
        lists = [a if isinstance(a, list) else [] if a is None else [a] for a in one.args[:6]]
        more = [b if isinstance(b, list) else [] if b is None else [b] for b in other.args[:6]]
        weights, *buffers = (a + b for a, b in zip(lists, more, strict=True))
        yield Sample(one.note, (weights, [2, 2], *buffers, *one.args[7:]))


def _masked_decay(make: Maker) -> Iterator[Sample]:
    w = make.normal(24, 40)
    yield Sample("mask", (make.normal(24, 40), w, masks.transposable_mask(w), 6e-5))


def _masked_decay_patterns(make: Maker) -> Iterator[Sample]:
    w, alpha = make.normal(24, 40), torch.tensor(6e-5, device=make.device)
    yield Sample("blocks", (make.normal(24, 40), w, masks.transposable_patterns(w), "transposable", alpha))
    yield Sample("rows", (make.normal(24, 40), w, masks.magnitude_patterns(w), "rows", alpha))


def _masked_decay_many(make: Maker) -> Iterator[Sample]:
    alpha = torch.tensor(6e-5, device=make.device)
    for kind, find in (("transposable", masks.transposable_patterns), ("rows", masks.magnitude_patterns)):
        weights = [make.normal(24, 40), make.normal(8, 12).t().contiguous().t(), make.strided(64, 64)]
        grads = [make.normal(24, 40), make.normal(8, 12), make.normal(64, 64)]
        yield Sample(kind, (grads, weights, [find(w) for w in weights], kind, alpha))


SAMPLES: Samples = {
    "transposable_patterns": _weights,
    "expand_patterns": _patterns,
    "transposable_mask": _weights,
    "magnitude_patterns": _weights,
    "magnitude_mask": _weights,
    "soft_threshold": _weights,
    "soft_threshold_scale": _weights,
    "flip_rate": _flips,
    "pack": _pack,
    "unpack": _unpack,
    "pack_both": _pack_both,
    "pack_weight_": _pack_weight,
    "masked_decay_": _masked_decay,
    "masked_decay_patterns_": _masked_decay_patterns,
    "pack_weights_": _pack_weights,
    "masked_decay_many_": _masked_decay_many,
}
