"""Sample inputs of the ops that quantise and pack into eight-bit floats. T tokens, F features."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from s24compile.kernels import format as layouts
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.pack import reference as packing
from s24compile.kernels.samples.maker import Maker, Sample, Samples
from s24compile.kernels.scaling import finite_amax

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def _inputs(make: Maker) -> Iterator[tuple[str, Tensor]]:
    yield "row-major", make.normal(136, 72)
    yield "odd sizes", make.normal(37, 20)
    yield "transposed", make.normal(20, 36).t()
    yield "pitch and offset", make.strided(36, 24)
    yield "expanded", make.normal(1, 1).expand(36, 20)
    yield "zeros", torch.zeros_like(make.normal(36, 20))
    yield "no tokens", make.normal(0, 20)


def _amax(make: Maker) -> Iterator[Sample]:
    for note, x in _inputs(make):
        yield Sample(note, (x,))
    yield Sample("three dims", (make.normal(3, 5, 8),))
    yield Sample("nothing finite", (make.normal(4, 8) * torch.inf,))


def _quantise(make: Maker) -> Iterator[Sample]:
    for (note, x), dtype in zip(_inputs(make), itertools.cycle((E4M3, E5M2)), strict=False):
        yield Sample(f"{dtype}, {note}", (x, finite_amax(x), dtype, "both"))
    x = make.normal(72, 40)
    yield Sample("rows only", (x, finite_amax(x), E5M2, "row"))
    yield Sample("columns only", (x, finite_amax(x), E4M3, "col"))
    yield Sample("an amax of earlier", (x, 0.01 * finite_amax(x), E4M3, "both"))


def _quantise_pack(make: Maker) -> Iterator[Sample]:
    kinds = itertools.cycle(((E5M2, True, False), (E4M3, False, True), (E5M2, True, True)))
    for (note, g), (dtype, rows, sums) in zip(_inputs(make), kinds, strict=False):
        yield Sample(f"{dtype}, {note}", (g, finite_amax(g), make.seed(), dtype, "sm90", rows, sums))
    g = make.normal(72, 40)
    yield Sample("an amax of earlier", (g, 0.01 * finite_amax(g), make.seed(), E5M2, "sm90", True, True))


def _glu_gradients(make: Maker) -> Iterator[tuple[str, Tensor, Tensor, str]]:
    for gate, hidden in (("first", 64), ("second", 128), ("first", 24)):
        yield f"{gate}, F = {hidden}", make.normal(2, 35, hidden), make.normal(2, 35, 2 * hidden), gate


def _glu_backward_amax(make: Maker) -> Iterator[Sample]:
    for note, dh, z, gate in _glu_gradients(make):
        yield Sample(note, (dh, z, "silu", gate))


def _glu_backward_quantise_pack(make: Maker) -> Iterator[Sample]:
    for note, dh, z, gate in _glu_gradients(make):
        amax = torch.full((1,), 8.0, device=make.device)
        yield Sample(note, (dh, z, amax, "gelu", gate, make.seed(), E5M2, "sm90", gate == "first"))


def _pack_weights_fp8(make: Maker) -> Iterator[Sample]:
    for format, layout, select in (
        ("sm90", "out_in", "transposable"), ("sm90", "in_out", "transposable"), ("sm90", "out_in", "soft_threshold"),
        ("sm90_gated", "in_out", "magnitude"), ("sm90_gated", "out_in", "transposable"),
        ("sm80", "out_in", "magnitude"),
    ):  # fmt: skip
        yield Sample(f"{format}, {layout}, {select}", _stacked(make, format, layout, select))


def _stacked(make: Maker, format: str, layout: str, select: str) -> tuple[object, ...]:
    """Arguments for two operands, one of two weights."""
    find = masks.transposable_patterns if select == "transposable" else masks.magnitude_patterns
    rows = (40, 40) if format == "sm90_gated" else (68, 12)
    weights = [make.normal(n, 72).float() for n in (*rows, 64)]
    patterns = [find(w) for w in weights]
    if layout == "in_out":
        weights = [w.t().contiguous() for w in weights]
    form = layouts.FORMATS[format]
    both = select == "transposable"
    plain = [form.empty(n, 72, E4M3, make.device) for n in (sum(rows), 64)]
    turned = [layouts.FORMATS[form.transposed].empty(72, n, E4M3, make.device) for n in (sum(rows), 64) if both]
    buffers = [[pair[place] for pair in pairs] for pairs in (plain, turned) for place in (0, 1)]
    descales = [torch.zeros(1, device=make.device) for _ in plain]
    scales = [torch.tensor(beta, device=make.device) for beta in (1.5, 1.25, -2.0) if select == "soft_threshold"]
    return weights, [2, 1], patterns, *buffers, descales, scales, select, layout == "out_in", format, layout


def _unpack_transposed(make: Maker) -> Iterator[Sample]:
    for format, rows, cols in (("sm90", 72, 136), ("sm90", 20, 22), ("sm80", 40, 36), ("sm90_gated", 80, 68)):
        w = make.normal(rows, (cols + 3) // 4 * 4)
        packed = packing.pack(w, masks.magnitude_mask(w), E4M3, format)
        yield Sample(f"{format}, {rows} by {cols}", (*packed, rows, cols, format))


SAMPLES: Samples = {
    "amax": _amax,
    "quantise": _quantise,
    "quantise_pack": _quantise_pack,
    "glu_backward_amax": _glu_backward_amax,
    "glu_backward_quantise_pack": _glu_backward_quantise_pack,
    "unpack_transposed": _unpack_transposed,
    "pack_weights_fp8_": _pack_weights_fp8,
}
