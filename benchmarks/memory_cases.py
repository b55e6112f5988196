"""The calls that memory_kernels.py and memory_sweep.py time, each with the bytes that it must move.

Legend: N, K rows and columns of a weight; T tokens, F hidden width. Bytes: each input read once, each output written
once; metadata is an eighth of the packed values' dense count in bits, 1/8 byte an element.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from s24compile.kernels import ops
from s24compile.kernels.format import FORMATS

BF16 = torch.bfloat16
CACHE_BYTES = 200_000_000
"""Inputs of one case are repeated until they are four times the GPU's cache."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of call: `make` draws new inputs and returns the call; `bytes` is what one call moves."""

    name: str
    shape: str
    bytes: int
    make: Callable[[], Callable[[], object]]

    def calls(self) -> list[Callable[[], object]]:
        """As many calls on different inputs as keep them out of the cache."""
        return [self.make() for _ in range(max(2, min(24, CACHE_BYTES // max(self.bytes, 1) + 1)))]


def seed() -> Tensor:
    """A fixed MVUE seed."""
    return torch.tensor([5], device="cuda")


def normal(*shape: int, dtype: torch.dtype = BF16, turned: bool = False) -> Tensor:
    """Random normal numbers; `turned`: contiguous along the first dim."""
    x = torch.randn(shape, device="cuda").to(dtype)
    return x.t().contiguous().t() if turned else x


def packed(m: int, k: int, format: str = "sm90") -> tuple[Tensor, Tensor]:
    """Buffers of a packed operand [m, k]."""
    return FORMATS[format].empty(m, k, BF16, torch.device("cuda"))


def pack(
    n: int,
    k: int,
    dtype: torch.dtype,
    select: str,
    search: bool,
    turned: bool = False,
    format: str = "sm90",
    parts: int = 1,
) -> Case:
    """pack_weight_ of an operand [n, k] of one weight, or of equal parts: both directions for a transposable mask, one
    for row rules."""
    both = select == "transposable"

    def make() -> Callable[[], object]:
        return functools.partial(ops.pack_weight_, *pack_arguments(n, k, dtype, select, search, turned, format, parts))

    moved = n * k * dtype.itemsize + (n * k + n * k // 8) * (2 if both else 1) + n * k // (16 if both else 4)
    words = select, "search" if search else "given", "in_out" * turned, f"{parts} parts" * (parts > 1)
    other = format if format != "sm90" else ""
    name = ", ".join(word for word in (*words, other, str(dtype)[6:]) if word)
    return Case(f"pack {name}", f"{n}x{k}", moved, make)


def pack_arguments(
    n: int, k: int, dtype: torch.dtype, select: str, search: bool, turned: bool, format: str, parts: int
) -> tuple[Any, ...]:
    """Arguments of pack_weight_ on new buffers and random weights."""
    both, rows = select == "transposable", n // parts
    weights = [normal(rows, k, dtype=dtype) for _ in range(parts)]
    shape = (rows // 4 if both else rows, k // 4)
    patterns = [torch.randint(0, 90 if both else 6, shape, device="cuda", dtype=torch.uint8) for _ in weights]
    transposed = packed(k, n, FORMATS[format].transposed) if both else (None, None)
    stored = [w.t().contiguous() for w in weights] if turned else weights
    layout = "in_out" if turned else "out_in"
    return stored, patterns, *packed(n, k, format), *transposed, None, select, search, format, layout


def mvue_pack(t: int, f: int, turned: bool, sums: bool = False, format: str = "sm90") -> Case:
    """mvue_pack of a gradient [t, f], row- or column-major."""

    def make() -> Callable[[], object]:
        g, s = normal(t, f, turned=turned), seed()
        op = ops.mvue_pack_sum if sums else ops.mvue_pack
        return lambda: op(g, s, BF16, format)

    other = "" if format == "sm90" else f", {format}"
    name = f"mvue_pack{'_sum' if sums else ''}, {_major(turned)}{other}"
    return Case(name, f"{t}x{f}", t * f * 3 + t * f // 8, make)


def flip_rate(n: int, k: int) -> Case:
    """The share of a mask [n, k] that changed."""

    def make() -> Callable[[], object]:
        before, after = (torch.rand(n, k, device="cuda") > 0.5 for _ in range(2))
        return lambda: ops.flip_rate(before, after)

    return Case("flip_rate", f"{n}x{k}", 2 * n * k, make)


def soft_threshold_scale(n: int, k: int, dtype: torch.dtype, turned: bool = False) -> Case:
    """S-STE's beta of a weight [n, k]."""

    def make() -> Callable[[], object]:
        w = normal(n, k, dtype=dtype, turned=turned)
        return lambda: ops.soft_threshold_scale(w)

    name = f"soft_threshold_scale, {_major(turned)}, {str(dtype)[6:]}"
    return Case(name, f"{n}x{k}", n * k * dtype.itemsize, make)


def glu(t: int, f: int, turned: bool, act: str = "gelu") -> Case:
    """glu forward from z [t, 2f]."""

    def make() -> Callable[[], object]:
        z = normal(t, 2 * f, turned=turned)
        return lambda: ops.glu(z, act, "first")

    return Case(f"glu {act}, {_major(turned)}", f"{t}x{f}", t * f * 6, make)


def glu_backward(t: int, f: int, turned: bool, act: str = "gelu") -> Case:
    """glu backward from dh [t, f] and z [t, 2f]."""

    def make() -> Callable[[], object]:
        z, dh = normal(t, 2 * f, turned=turned), normal(t, f, turned=turned)
        return lambda: ops.glu_backward(dh, z, act, "first")

    return Case(f"glu_backward {act}, {_major(turned)}", f"{t}x{f}", t * f * 10, make)


def masked_decay(n: int, k: int, dtype: torch.dtype) -> Case:
    """Masked decay of one weight's gradient, through the multi-tensor op."""

    def make() -> Callable[[], object]:
        g, w = normal(n, k, dtype=dtype), normal(n, k, dtype=dtype)
        patterns = torch.randint(0, 90, (n // 4, k // 4), device="cuda", dtype=torch.uint8)
        alpha = torch.tensor(1e-9, device="cuda")
        return lambda: ops.masked_decay_many_([g], [w], [patterns], "transposable", alpha)

    return Case(f"masked_decay_, {str(dtype)[6:]}", f"{n}x{k}", n * k * 3 * dtype.itemsize + n * k // 16, make)


def _major(turned: bool) -> str:
    return "column-major" if turned else "row-major"
