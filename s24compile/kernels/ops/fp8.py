"""Contracts of the ops that quantise and pack into eight-bit floats. Legend: T tokens, F features.

`amax` is fp32 [1] and says by what is quantised: `scaling.py`. A `descale`, fp32 [1], is what the eight-bit values are
multiplied by to be themselves again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops.contract import contract
from s24compile.kernels.ops.packing import BUFFERS
from s24compile.kernels.packed import Packed24
from s24compile.kernels.padding import empty_rows
from s24compile.kernels.stacks import Packing, Stacks

Gradient = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _one(like: Tensor) -> Tensor:
    return like.new_empty((1,), dtype=torch.float32)


@contract()
def amax(x: Tensor) -> Tensor:
    """fp32 [1]: the largest finite magnitude of x, 0 where there is none."""
    return _one(x)


@contract()
def quantise(x: Tensor, amax: Tensor, dtype: torch.dtype, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    """(q [T, F], q^T [F, T], descale) of x [T, F] from one read; layout: "row", "col" or "both", the other is empty."""
    (tokens, features), nothing = x.shape, x.new_empty((0,), dtype=dtype)
    q = empty_rows(tokens, features, dtype, x.device) if layout in ("row", "both") else nothing
    q_t = empty_rows(features, tokens, dtype, x.device) if layout in ("col", "both") else torch.empty_like(nothing)
    return q, q_t, _one(x)


@contract()
def quantise_pack(
    g: Tensor, amax: Tensor, seed: Tensor, dtype: torch.dtype, format: str, rows: bool, sums: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(q [T, F], values, metadata of MVUE(g^T) [F, T], descale of q, descale of the values, sums of g over T fp32 [F]).

    One read of g [T, F]; q where `rows` and the sums where `sums` ask for them.
    """
    return _empty_pack(g, g.shape[0], g.shape[1], dtype, format, rows, sums)


def _empty_pack(
    g: Tensor, tokens: int, features: int, dtype: torch.dtype, format: str, rows: bool, sums: bool
) -> Gradient:
    q = empty_rows(tokens, features, dtype, g.device) if rows else g.new_empty((0,), dtype=dtype)
    packed = FORMATS[format].empty_whole(features, tokens, dtype, g.device)
    total = g.new_empty((features if sums else 0,), dtype=torch.promote_types(g.dtype, torch.float32))
    return q, *packed, _one(g), _one(g), total


@contract()
def glu_backward_amax(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """`amax` of what `glu_backward` gives, which is not written."""
    return _one(z)


@contract()
def glu_backward_quantise_pack(
    dh: Tensor,
    z: Tensor,
    amax: Tensor,
    act: str,
    gate: str,
    seed: Tensor,
    dtype: torch.dtype,
    format: str,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`quantise_pack` of the dz [T, 2F] that `glu_backward` gives, T all leading dims of z; dz is not written."""
    return _empty_pack(z, math.prod(z.shape[:-1]), z.shape[-1], dtype, format, True, sums)


@contract()
def unpack_transposed(a: Packed24) -> Tensor:
    """Dense A^T [cols, rows], row-major with a pitch of whole 16 bytes, of an A of eight-bit floats."""
    rows, cols = a.shape
    return empty_rows(cols, rows, a.dtype, a.values.device)


@contract(mutates=(*BUFFERS, "descales"), short=True)
def pack_weights_fp8_(stacks: Stacks, descales: Sequence[Tensor], scales: Sequence[Tensor], packing: Packing) -> None:
    """`pack_weights_` into eight-bit floats by each operand's own amax; `descales` receives 1 / scale of each."""
