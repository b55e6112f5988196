"""The passes in eight bits that fp8_passes.py times, each with the bytes that it must move, and the tiles it tries.

Legend: T tokens, F features; N, K rows and columns of a weight. Bytes: each input read once, each output written once.
An element of a packed operand takes half a byte of values and an eighth of metadata.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.memory_cases import Case, normal, seed
from s24compile.kernels import ops
from s24compile.kernels.format import FORMATS
from s24compile.kernels.triton.tiles import Tile

E4M3, E5M2, BF16, FP32 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float32
ACTIVATIONS = ((16384, 2048), (16384, 4096), (16384, 14336))
GRADIENTS = ((16384, 4096), (16384, 28672))
WEIGHTS = ((5120, 1280), (16384, 2048), (28672, 4096), (4096, 14336))
PACKED = 0.5 + 1 / 8


def quantise(t: int, f: int, layout: str, with_amax: bool = False) -> Case:
    """x [t, f] in eight bits, as it is, transposed or both."""

    def make() -> Callable[[], object]:
        x = normal(t, f)
        amax = ops.amax(x)
        return lambda: ops.quantise(x, ops.amax(x) if with_amax else amax, E4M3, layout)

    moved = t * f * (2 * (1 + with_amax) + (2 if layout == "both" else 1))
    return Case(f"quantise, {layout}{', with amax' * with_amax}", f"{t}x{f}", moved, make)


def amax(t: int, f: int) -> Case:
    """The amax of x [t, f]."""

    def make() -> Callable[[], object]:
        return functools.partial(ops.amax, normal(t, f))

    return Case("amax", f"{t}x{f}", t * f * 2, make)


def quantise_pack(t: int, f: int, rows: bool, sums: bool = False, turned: bool = False) -> Case:
    """A gradient [t, f] packed by MVUE, and quantised as it is (rows)."""

    def make() -> Callable[[], object]:
        g = normal(t, f, turned=turned)
        return functools.partial(ops.quantise_pack, g, ops.amax(g), seed(), E5M2, "sm90", rows, sums)

    words = "rows" * rows, "sums" * sums, "column-major" * turned
    name = ", ".join(["quantise_pack", *(word for word in words if word)])
    return Case(name, f"{t}x{f}", int(t * f * (2 + PACKED + rows)), make)


def glu_gradient(t: int, f: int, act: str = "silu") -> Case:
    """GLU's backward into eight bits, from dh [t, f] and z [t, 2f]."""

    def make() -> Callable[[], object]:
        dh, z = normal(t, f), normal(t, 2 * f)
        amax = ops.glu_backward_amax(dh, z, act, "first")
        return lambda: ops.glu_backward_quantise_pack(dh, z, amax, act, "first", seed(), E5M2, "sm90", False)

    return Case(f"glu_backward_quantise_pack {act}", f"{t}x{f}", int(t * f * (6 + 2 * (1 + PACKED))), make)


def glu_gradient_amax(t: int, f: int, act: str = "silu") -> Case:
    """The amax of GLU's backward."""

    def make() -> Callable[[], object]:
        dh, z = normal(t, f), normal(t, 2 * f)
        return lambda: ops.glu_backward_amax(dh, z, act, "first")

    return Case(f"glu_backward_amax {act}", f"{t}x{f}", t * f * 6, make)


def weight_arguments(n: int, k: int, select: str, search: bool, dtype: torch.dtype, parts: int = 1) -> tuple[Any, ...]:
    """Arguments of pack_weights_fp8_ for one operand [n, k] of equal parts."""
    both, place = select == "transposable", torch.device("cuda")
    weights = [normal(n // parts, k, dtype=dtype) for _ in range(parts)]
    rows = n // parts // 4 if both else n // parts
    patterns = [torch.randint(0, 90 if both else 6, (rows, k // 4), device="cuda", dtype=torch.uint8) for _ in weights]
    format = "sm90_gated" if parts == 2 else "sm90"
    buffers = [[x] for x in FORMATS[format].empty(n, k, E4M3, place)]
    buffers += [[x] for x in FORMATS["sm90"].empty(k, n, E4M3, place)] if both else [[], []]
    descales = [torch.zeros(1, device="cuda")]
    scales = [torch.tensor(1.5, device="cuda") for _ in weights] if select == "soft_threshold" else []
    return weights, [parts], patterns, *buffers, descales, scales, select, search, format, "out_in"


def pack_weights(n: int, k: int, select: str, search: bool, dtype: torch.dtype = FP32, parts: int = 1) -> Case:
    """A weight [n, k] into eight bits, with its amax: two reads of it."""

    def make() -> Callable[[], object]:
        return functools.partial(ops.pack_weights_fp8_, *weight_arguments(n, k, select, search, dtype, parts))

    both = select == "transposable"
    moved = n * k * (2 * dtype.itemsize + PACKED * (1 + both) + (1 / 16 if both else 1 / 4))
    words = select, "search" if search else "given", f"{parts} parts" * (parts > 1), str(dtype)[6:]
    return Case(", ".join(word for word in ("pack", *words) if word), f"{n}x{k}", int(moved), make)


def all_cases() -> Iterator[Case]:
    """The rows of the table."""
    for t, f in ACTIVATIONS:
        yield amax(t, f)
        for layout in ("row", "col", "both"):
            yield quantise(t, f, layout)
        yield quantise(t, f, "both", with_amax=True)
    for t, f in GRADIENTS:
        yield quantise_pack(t, f, rows=False)
        yield quantise_pack(t, f, rows=True)
    yield quantise_pack(16384, 4096, rows=True, sums=True)
    yield quantise_pack(16384, 4096, rows=True, turned=True)
    yield glu_gradient_amax(16384, 14336)
    yield glu_gradient(16384, 14336)
    for n, k in WEIGHTS:
        for search in (True, False):
            yield pack_weights(n, k, "transposable", search)
    yield pack_weights(28672, 4096, "transposable", False, parts=2)
    yield pack_weights(28672, 4096, "transposable", False, BF16)
    yield pack_weights(28672, 4096, "soft_threshold", True)


SWEEP: dict[str, tuple[Case, list[Tile]]] = {
    "AMAX": (amax(16384, 4096), [Tile(4, 1024, 4), Tile(8, 512, 4), Tile(2, 2048, 8), Tile(8, 1024, 8)]),
    "QUANTISE": (
        quantise(16384, 4096, "both"),
        [Tile(64, 128, 4), Tile(128, 64, 4), Tile(128, 128, 8), Tile(64, 64, 2), Tile(128, 128, 4), Tile(64, 256, 8)],
    ),
    "ROWS": (
        quantise_pack(16384, 4096, rows=False),
        [
            Tile(128, 64, 4, 112), Tile(128, 64, 4), Tile(128, 64, 8), Tile(64, 64, 4), Tile(64, 128, 8),
            Tile(128, 128, 8),
        ],
    ),
    "ROWS_BOTH": (
        quantise_pack(16384, 4096, rows=True),
        [
            Tile(128, 64, 8), Tile(128, 64, 4), Tile(64, 64, 4), Tile(64, 128, 8), Tile(128, 128, 8),
            Tile(64, 128, 4, 128),
        ],
    ),
    "ROWS_ALONG": (
        quantise_pack(16384, 4096, rows=False, turned=True),
        [Tile(64, 128, 4), Tile(64, 128, 8), Tile(64, 64, 4), Tile(128, 128, 8)],
    ),
    "BLOCKS": (
        pack_weights(16384, 4096, "transposable", False),
        [Tile(64, 64, 4), Tile(64, 64, 2), Tile(64, 64, 8), Tile(128, 64, 8), Tile(64, 128, 8), Tile(128, 128, 8)],
    ),
    "GLU_AMAX": (glu_gradient_amax(16384, 14336), [Tile(2, 1024, 4), Tile(4, 1024, 8), Tile(4, 512, 4)]),
    "GLU_PACK": (
        glu_gradient(16384, 14336),
        [Tile(64, 64, 4), Tile(64, 64, 4, 128), Tile(128, 32, 4), Tile(64, 128, 8), Tile(128, 64, 8)],
    ),
}  # fmt: skip
"""Tile of triton_tiles.py -> (what is timed with it, what is tried)."""
