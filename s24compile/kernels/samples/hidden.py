"""Sample inputs of the ops on hidden activations and gradients. T tokens, F hidden width."""

from __future__ import annotations

from collections.abc import Iterator

from s24compile.kernels.activations import DENSE
from s24compile.kernels.samples.maker import FORMATS, Maker, Sample, Samples


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


def _act(make: Maker) -> Iterator[Sample]:
    for act in DENSE:
        yield Sample(act, (make.normal(3, 5, 24).requires_grad_(), act))
    yield Sample("column-major", (make.normal(8, 24).t(), "silu"))


def _act_backward(make: Maker) -> Iterator[Sample]:
    for sample in _act(make):
        z, act = sample.args
        yield Sample(sample.note, (make.normal(*z.shape), z.detach(), act))


def _glu(make: Maker) -> Iterator[Sample]:
    for act in DENSE:
        for gate in ("first", "second"):
            yield Sample(f"{act}, {gate}", (make.normal(3, 5, 24).requires_grad_(), act, gate))
    yield Sample("strided", (make.strided(6, 16), "silu", "first"))
    yield Sample("no features", (make.normal(3, 0), "silu", "first"))
    yield Sample("no tokens", (make.normal(0, 8), "gelu", "second"))


def _glu_backward(make: Maker) -> Iterator[Sample]:
    for sample in _glu(make):
        z, act, gate = sample.args
        yield Sample(sample.note, (make.normal(*z.shape[:-1], z.shape[-1] // 2), z.detach(), act, gate))


SAMPLES: Samples = {
    "mvue": _mvue,
    "mvue_pack": _mvue_pack,
    "act": _act,
    "act_backward": _act_backward,
    "glu": _glu,
    "glu_backward": _glu_backward,
    "mvue_pack_sum": _mvue_pack,
}
