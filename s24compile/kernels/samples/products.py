"""Sample inputs of the 2:4 products, those with an epilogue among them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from s24compile.kernels.masks import reference as masks
from s24compile.kernels.pack import reference as packing
from s24compile.kernels.samples.maker import FORMATS, Maker, Sample, Samples


def _mm(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = make.operand(72, 136, format)
        yield Sample(f"{format}, row", (*a, make.normal(136, 24), None, "row", make.dtype))
        yield Sample(f"{format}, col, bias", (*a, make.normal(24, 136).t(), make.normal(72), "col", make.dtype))
        odd = make.operand(20, 22, format)
        yield Sample(f"{format}, odd k", (*odd, make.normal(22, 9), None, "row", make.dtype))
        wide = torch.promote_types(make.dtype, torch.float32)
        yield Sample(f"{format}, fp32 out", (*a, make.strided(136, 24), None, "row", wide))


def _mm_act(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = make.operand(72, 136, format)
        yield Sample(f"{format}, row", (*a, make.normal(136, 24), None, "gelu", "row"))
        yield Sample(f"{format}, col, bias", (*a, make.normal(24, 136).t(), make.normal(72), "relu", "col"))


def _mm_dact(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = make.operand(72, 136, format)
        yield Sample(f"{format}, row", (*a, make.normal(136, 24), make.normal(72, 24), "gelu_tanh", "row"))
        yield Sample(f"{format}, col", (*a, make.normal(24, 136).t(), make.normal(24, 72).t(), "silu", "col"))


def _mm_add(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = make.operand(72, 136, format)
        yield Sample(f"{format}, col", (*a, make.normal(24, 136).t(), make.normal(24, 72).t()))
        wide = torch.promote_types(make.dtype, torch.float32)
        yield Sample(f"{format}, fp32", (*a, make.normal(136, 24), make.normal(24, 72).t().to(wide)))


def _mm_glu(make: Maker) -> Iterator[Sample]:
    for format in (*FORMATS, "sm90_gated"):
        a = make.operand(80, 136, format)
        yield Sample(f"{format}, first", (*a, make.normal(136, 24), "gelu", "first"))
        yield Sample(f"{format}, second", (*a, make.normal(40, 136).t(), "silu", "second"))


def _mm_dglu(make: Maker) -> Iterator[Sample]:
    for format in FORMATS:
        a = make.operand(72, 136, format)
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


SAMPLES: Samples = {
    "mm": _mm,
    "mm_act": _mm_act,
    "mm_dact": _mm_dact,
    "mm_dact_sum": _mm_dact,
    "mm_add": _mm_add,
    "mm_glu": _mm_glu,
    "mm_dglu": _mm_dglu,
    "linear": _linear,
}
