"""Sample inputs of the products of eight-bit floats: operands of every pair of types that training multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from s24compile.kernels.fp8.reference import quantise
from s24compile.kernels.masks import reference as masks
from s24compile.kernels.pack.reference import pack, pack_both
from s24compile.kernels.samples.maker import Maker, Sample, Samples
from s24compile.kernels.scaling import descale_of, finite_amax, scale_of

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
PAIRS = ((E4M3, E4M3), (E4M3, E5M2), (E5M2, E4M3))
"""Weights by activations, W^T by gradients, gradients by activations."""


def _sparse(make: Maker, m: int, k: int, dtype: torch.dtype, format: str = "sm90") -> tuple[Any, ...]:
    """(values, metadata, m, k, format, descale_a) of a random 2:4 matrix."""
    w = make.normal(m, (k + 3) // 4 * 4).float()
    scale = scale_of(finite_amax(w), dtype)
    return *pack(w * scale, masks.magnitude_mask(w), dtype, format), m, k, format, descale_of(scale)


def _dense(make: Maker, k: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(B [k, n] along k, descale_b)."""
    x = make.normal(n, k)
    q, _, descale = quantise(x, finite_amax(x), dtype, "row")
    return q.t(), descale


def _operands(make: Maker, m: int, k: int, n: int, pair: tuple[torch.dtype, torch.dtype], format: str = "sm90") -> Any:
    return *_sparse(make, m, k, pair[0], format), *_dense(make, k, n, pair[1])


def _scaled_mm(make: Maker) -> Iterator[Sample]:
    for pair in PAIRS:
        yield Sample(f"{pair}, row", (*_operands(make, 72, 136, 24, pair), None, "row", make.dtype, False))
    whole = _operands(make, 72, 136, 24, PAIRS[0])
    yield Sample("col, bias", (*whole, make.normal(72), "col", make.dtype, False))
    wide = torch.promote_types(make.dtype, torch.float32)
    yield Sample("fp32 out, exact sums", (*whole, None, "col", wide, True))
    yield Sample("odd k", (*_operands(make, 20, 22, 9, PAIRS[2]), None, "row", wide, False))


def _scaled_mm_act(make: Maker) -> Iterator[Sample]:
    for act, layout in (("gelu", "row"), ("relu", "col")):
        bias = make.normal(72) if layout == "col" else None
        yield Sample(
            f"{act}, {layout}", (*_operands(make, 72, 136, 24, PAIRS[0]), bias, act, layout, make.dtype, False)
        )


def _scaled_mm_dact(make: Maker) -> Iterator[Sample]:
    for act, layout, sums in (("gelu_tanh", "row", False), ("silu", "col", True)):
        z = make.normal(72, 24) if layout == "row" else make.normal(24, 72).t()
        yield Sample(f"{act}, {layout}", (*_operands(make, 72, 136, 24, PAIRS[1]), z, act, layout, sums, False))


def _scaled_mm_add(make: Maker) -> Iterator[Sample]:
    yield Sample("residual", (*_operands(make, 72, 136, 24, PAIRS[0]), make.normal(24, 72).t(), False))


def _scaled_mm_glu(make: Maker) -> Iterator[Sample]:
    for gate, format in (("first", "sm90"), ("second", "sm90_gated"), ("first", "sm90_gated")):
        operands = _operands(make, 80, 136, 24, PAIRS[0], format)
        yield Sample(f"{format}, {gate}", (*operands, "silu", gate, make.dtype, False))


def _scaled_mm_dglu(make: Maker) -> Iterator[Sample]:
    for gate in ("first", "second"):
        z = make.normal(24, 144).t()
        yield Sample(gate, (*_operands(make, 72, 136, 24, PAIRS[1]), z, "gelu", gate, False))


def _scaled_dense(make: Maker) -> Iterator[Sample]:
    for pair in PAIRS:
        (a, descale_a), b = _dense(make, 64, 32, pair[0]), _dense(make, 64, 48, pair[1])
        yield Sample(f"{pair}", (a.t(), descale_a, *b, None, make.dtype, pair[0] == E4M3))
    (a, descale_a), b = _dense(make, 22, 9, E4M3), _dense(make, 22, 20, E4M3)
    yield Sample("odd sizes, bias", (a.t(), descale_a, *b, make.normal(20), make.dtype, False))


def _scaled_linear(make: Maker) -> Iterator[Sample]:
    for layout, dx, dw in (("out_in", "sparse", "mvue"), ("in_out", "dense", "dense"), ("out_in", "mvue", "mvue")):
        w = make.normal(80, 72).float()
        scale = scale_of(finite_amax(w), E4M3)
        packed = pack_both(w * scale, masks.transposable_mask(w), E4M3, "sm90")
        weights = [w[:68], w[68:]] if layout == "out_in" else [w[:68].t(), w[68:].t()]
        weights = [part.contiguous().requires_grad_() for part in weights]
        x, bias = make.normal(3, 5, 72).requires_grad_(), make.normal(80).requires_grad_()
        probes = [torch.zeros(1, device=w.device, requires_grad=True) for _ in range(2 if layout == "out_in" else 0)]
        operand = *packed[:2], descale_of(scale), probes, *packed[2:]
        yield Sample(f"{layout}, {dx}, {dw}", (x, weights, *operand, bias, make.dtype, "sm90", layout, dx, dw))


def _scaled_dense_linear(make: Maker) -> Iterator[Sample]:
    for layout in ("out_in", "in_out"):
        w = make.normal(*((80, 72) if layout == "out_in" else (72, 80))).float().requires_grad_()
        x, bias = make.normal(3, 5, 72).requires_grad_(), make.normal(80).requires_grad_()
        yield Sample(layout, (x, w, bias, make.dtype, layout))


SAMPLES: Samples = {
    "scaled_mm": _scaled_mm,
    "scaled_mm_act": _scaled_mm_act,
    "scaled_mm_dact": _scaled_mm_dact,
    "scaled_mm_add": _scaled_mm_add,
    "scaled_mm_glu": _scaled_mm_glu,
    "scaled_mm_dglu": _scaled_mm_dglu,
    "scaled_dense": _scaled_dense,
    "scaled_linear": _scaled_linear,
    "scaled_dense_linear": _scaled_dense_linear,
}
