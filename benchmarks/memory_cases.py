"""The calls that memory_kernels.py and memory_sweep.py time, each with the bytes that it must move.

Legend: N, K rows and columns of a weight; T tokens, F hidden width. Bytes: each input read once, each output written
once; metadata is an eighth of the packed values' dense count in bits, 1/8 byte an element.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

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


def packed(m: int, k: int) -> tuple[Tensor, Tensor]:
    """Buffers of a packed operand [m, k]."""
    return FORMATS["sm90"].empty(m, k, BF16, torch.device("cuda"))


def pack(n: int, k: int, dtype: torch.dtype, select: str, search: bool, turned: bool = False) -> Case:
    """pack_weight_ of one weight: both directions for a transposable mask, one for row rules."""
    both = select == "transposable"

    def make() -> Callable[[], object]:
        w = normal(n, k, dtype=dtype)
        patterns = torch.randint(
            0, 90 if both else 6, (n // 4 if both else n, k // 4), device="cuda", dtype=torch.uint8
        )
        buffers = (*packed(n, k), *(packed(k, n) if both else (None, None)))
        weights, layout = ([w.t().contiguous()], "in_out") if turned else ([w], "out_in")
        return lambda: ops.pack_weight_(weights, [patterns], *buffers, None, select, search, "sm90", layout)

    moved = n * k * dtype.itemsize + (n * k + n * k // 8) * (2 if both else 1) + n * k // (16 if both else 4)
    name = f"pack {select}{', search' if search else ', given'}{', in_out' if turned else ''}, {str(dtype)[6:]}"
    return Case(name, f"{n}x{k}", moved, make)


def mvue_pack(t: int, f: int, turned: bool, sums: bool = False) -> Case:
    """mvue_pack of a gradient [t, f], row- or column-major."""

    def make() -> Callable[[], object]:
        g, s = normal(t, f, turned=turned), seed()
        op = ops.mvue_pack_sum if sums else ops.mvue_pack
        return lambda: op(g, s, BF16, "sm90")

    return Case(f"mvue_pack{'_sum' if sums else ''}, {_major(turned)}", f"{t}x{f}", t * f * 3 + t * f // 8, make)


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


def glu_backward_pack(t: int, f: int, act: str = "gelu") -> Case:
    """glu backward fused with mvue_pack of its result."""

    def make() -> Callable[[], object]:
        z, dh, s = normal(t, 2 * f), normal(t, f), seed()
        return lambda: ops.glu_backward_pack(dh, z, act, "first", s, BF16, "sm90", False, False)

    return Case(f"glu_backward_pack {act}", f"{t}x{f}", t * f * 12 + t * f // 4, make)


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
