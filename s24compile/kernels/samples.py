"""Sample inputs of every op, one function per op: what tests, opcheck and provider comparisons are run on.

Shapes are small and odd on purpose: more than one metadata atom, row ranges that end within an atom, strided and
offset inputs, empty ones. Legend: T tokens, N output features, K input features, F hidden width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from s24compile.kernels import format as layouts
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.pack import reference as packing

FORMATS = ("sm90", "sm80")
"""Formats of operands with any number of rows; "sm90_gated" has samples of its own shapes."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One call: the op's positional arguments, and what is special about it."""

    note: str
    args: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Maker:
    """Draws random tensors of one dtype on one device, from its own generator."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values."""
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device, self.dtype)

    def grid(self, *shape: int) -> Tensor:
        """Integers in [-2, 2]: ties in nearly every group, exact in every dtype."""
        return torch.randint(-2, 3, shape, generator=self.generator).to(self.device, self.dtype)

    def seed(self, value: int = 0x1234_5678_9ABC) -> Tensor:
        """A seed tensor."""
        return torch.tensor([value], dtype=torch.int64, device=self.device)

    def strided(self, *shape: int) -> Tensor:
        """Normal values with an offset and a row pitch."""
        return self.normal(shape[0] + 1, shape[1] + 8)[1:, 4 : shape[1] + 4]

    def packed(self, m: int, k: int, format: str) -> tuple[Tensor, Tensor]:
        """(values, metadata) of a random 2:4 matrix."""
        w = self.normal(m, (k + 3) // 4 * 4)
        values, metadata = packing.pack(w, masks.magnitude_mask(w), self.dtype, format)
        return values, metadata


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
        yield Sample(format, (*make.packed(72, 136, format), 72, 136, format))
        yield Sample(f"{format}, odd k", (*make.packed(20, 22, format), 20, 22, format))
    yield Sample("sm90_gated", (*make.packed(80, 22, "sm90_gated"), 80, 22, "sm90_gated"))


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


def _mvue(make: Maker) -> Iterator[Sample]:
    yield Sample("rows", (make.normal(5, 68), make.seed(), -1))
    yield Sample("columns", (make.normal(68, 5), make.seed(), 0))
    yield Sample("middle dim, transposed", (make.normal(3, 5, 8).transpose(1, 2), make.seed(), 1))
    yield Sample("zeros and ties", (make.grid(33, 16), make.seed(-1), 1))


def _mvue_pack(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        yield Sample(format, (make.normal(136, 72), make.seed(), make.dtype, format))
        yield Sample(f"{format}, odd T", (make.normal(37, 20), make.seed(), make.dtype, format))
        yield Sample(f"{format}, transposed", (make.normal(20, 36).t(), make.seed(), make.dtype, format))
        yield Sample(f"{format}, expanded", (make.normal(1, 1).expand(36, 20), make.seed(), make.dtype, format))
        yield Sample(f"{format}, no tokens", (make.normal(0, 20), make.seed(), make.dtype, format))


def _mm(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = (*make.packed(72, 136, format), 72, 136, format)
        yield Sample(f"{format}, row", (*a, make.normal(136, 24), None, "row", make.dtype))
        yield Sample(f"{format}, col, bias", (*a, make.normal(24, 136).t(), make.normal(72), "col", make.dtype))
        odd = (*make.packed(20, 22, format), 20, 22, format)
        yield Sample(f"{format}, odd k", (*odd, make.normal(22, 9), None, "row", make.dtype))
        wide = torch.promote_types(make.dtype, torch.float32)
        yield Sample(f"{format}, fp32 out", (*a, make.strided(136, 24), None, "row", wide))


def _act(make: Maker) -> Iterator[Sample]:
    for act in ("gelu", "gelu_tanh", "silu", "relu"):
        yield Sample(act, (make.normal(3, 5, 24).requires_grad_(), act))
    yield Sample("column-major", (make.normal(8, 24).t(), "silu"))


def _act_backward(make: Maker) -> Iterator[Sample]:
    for sample in _act(make):
        z, act = sample.args
        yield Sample(sample.note, (make.normal(*z.shape), z.detach(), act))


def _mm_act(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = (*make.packed(72, 136, format), 72, 136, format)
        yield Sample(f"{format}, row", (*a, make.normal(136, 24), None, "gelu", "row"))
        yield Sample(f"{format}, col, bias", (*a, make.normal(24, 136).t(), make.normal(72), "relu", "col"))


def _mm_dact(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = (*make.packed(72, 136, format), 72, 136, format)
        yield Sample(f"{format}, row", (*a, make.normal(136, 24), make.normal(72, 24), "gelu_tanh", "row"))
        yield Sample(f"{format}, col", (*a, make.normal(24, 136).t(), make.normal(24, 72).t(), "silu", "col"))


def _mm_add(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = (*make.packed(72, 136, format), 72, 136, format)
        yield Sample(f"{format}, col", (*a, make.normal(24, 136).t(), make.normal(24, 72).t()))
        wide = torch.promote_types(make.dtype, torch.float32)
        yield Sample(f"{format}, fp32", (*a, make.normal(136, 24), make.normal(24, 72).t().to(wide)))


def _mm_glu(make: Maker) -> Iterator[Sample]:
    for format in (*FORMATS, "sm90_gated"):
        a = (*make.packed(80, 136, format), 80, 136, format)
        yield Sample(f"{format}, first", (*a, make.normal(136, 24), "gelu", "first"))
        yield Sample(f"{format}, second", (*a, make.normal(40, 136).t(), "silu", "second"))


def _mm_dglu(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = (*make.packed(72, 136, format), 72, 136, format)
        yield Sample(f"{format}, first", (*a, make.normal(136, 24), make.normal(144, 24), "gelu_tanh", "first"))
        yield Sample(f"{format}, second", (*a, make.normal(24, 136).t(), make.normal(24, 144).t(), "silu", "second"))


def _linear(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        for layout, dx, dw in (("out_in", "sparse", "mvue"), ("in_out", "dense", "dense"), ("out_in", "mvue", "mvue")):
            w = make.normal(80, 72)
            mask = masks.transposable_mask(w)
            packed = packing.pack_both(w, mask, make.dtype, format)
            weights = [w[:68], w[68:]] if layout == "out_in" else [w[:68].t(), w[68:].t()]
            weights = [part.contiguous().requires_grad_() for part in weights]
            x, bias = make.normal(3, 5, 72).requires_grad_(), make.normal(80).requires_grad_()
            yield Sample(f"{format}, {layout}, {dx}, {dw}", (x, weights, *packed, bias, format, layout, dx, dw))


def _glu(make: Maker) -> Iterator[Sample]:
    for act in ("gelu", "gelu_tanh", "silu", "relu"):
        for gate in ("first", "second"):
            yield Sample(f"{act}, {gate}", (make.normal(3, 5, 24).requires_grad_(), act, gate))
    yield Sample("strided", (make.strided(6, 16), "silu", "first"))
    yield Sample("no features", (make.normal(3, 0), "silu", "first"))
    yield Sample("no tokens", (make.normal(0, 8), "gelu", "second"))


def _glu_backward(make: Maker) -> Iterator[Sample]:
    for sample in _glu(make):
        z, act, gate = sample.args
        yield Sample(sample.note, (make.normal(*z.shape[:-1], z.shape[-1] // 2), z.detach(), act, gate))


def _masked_decay(make: Maker) -> Iterator[Sample]:
    w = make.normal(24, 40)
    yield Sample("mask", (make.normal(24, 40), w, masks.transposable_mask(w), 6e-5))


def _masked_decay_patterns(make: Maker) -> Iterator[Sample]:
    w, alpha = make.normal(24, 40), torch.tensor(6e-5, device=make.device)
    yield Sample("blocks", (make.normal(24, 40), w, masks.transposable_patterns(w), "transposable", alpha))
    yield Sample("rows", (make.normal(24, 40), w, masks.magnitude_patterns(w), "rows", alpha))


def _glu_backward_pack(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        cases = ("first", 64, True, False), ("second", 128, False, True), ("first", 20, True, True)
        for gate, hidden, sums, recompute in cases:
            dh, z = make.normal(2, 35, hidden), make.normal(2, 35, 2 * hidden)
            options = (make.seed(), make.dtype, format, sums, recompute)
            yield Sample(f"{format}, {gate}, F = {hidden}", (dh, z, "gelu", gate, *options))


def _pack_weights(make: Maker) -> Iterator[Sample]:
    for one, other in zip(_pack_weight(make), _pack_weight(make), strict=True):
        if "soft_threshold" in one.note:  # takes scales, which only the op of one operand has
            continue
        lists = [a if isinstance(a, list) else [] if a is None else [a] for a in one.args[:6]]
        more = [b if isinstance(b, list) else [] if b is None else [b] for b in other.args[:6]]
        weights, *buffers = (a + b for a, b in zip(lists, more, strict=True))
        yield Sample(one.note, (weights, [2, 2], *buffers, *one.args[7:]))


def _masked_decay_many(make: Maker) -> Iterator[Sample]:
    alpha = torch.tensor(6e-5, device=make.device)
    for kind, find in (("transposable", masks.transposable_patterns), ("rows", masks.magnitude_patterns)):
        weights = [make.normal(24, 40), make.normal(8, 12).t().contiguous().t(), make.strided(64, 64)]
        grads = [make.normal(24, 40), make.normal(8, 12), make.normal(64, 64)]
        yield Sample(kind, (grads, weights, [find(w) for w in weights], kind, alpha))


SAMPLES: dict[str, Callable[[Maker], Iterator[Sample]]] = {
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
    "mvue": _mvue,
    "mvue_pack": _mvue_pack,
    "mm": _mm,
    "mm_act": _mm_act,
    "mm_dact": _mm_dact,
    "mm_dact_sum": _mm_dact,
    "mm_add": _mm_add,
    "mm_glu": _mm_glu,
    "mm_dglu": _mm_dglu,
    "act": _act,
    "act_backward": _act_backward,
    "linear": _linear,
    "glu": _glu,
    "glu_backward": _glu_backward,
    "masked_decay_": _masked_decay,
    "masked_decay_patterns_": _masked_decay_patterns,
    "mvue_pack_sum": _mvue_pack,
    "glu_backward_pack": _glu_backward_pack,
    "pack_weights_": _pack_weights,
    "masked_decay_many_": _masked_decay_many,
}
"""Op name to the function that yields its samples."""


def samples(op: str, device: str | torch.device, dtype: torch.dtype, seed: int = 0) -> list[Sample]:
    """The sample calls of one op: equal for equal arguments, fresh tensors each time (some ops write into them)."""
    generator = torch.Generator().manual_seed(seed)
    return list(SAMPLES[op](Maker(torch.device(device), dtype, generator)))
