"""Contracts of layers whose hidden state is sparse by itself: up projection, ReLU or its square, down projection.

Legend: T tokens (leading dims of x, flattened), D model width, F hidden width; p [T, F] the 2:4 hidden state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s24compile.errors import LoweringError
from s24compile.kernels import providers
from s24compile.kernels.activation import reference
from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops import gemm
from s24compile.kernels.ops.contract import contract
from s24compile.kernels.ops.estimation import mvue_pack
from s24compile.kernels.ops.packing import unpack
from s24compile.kernels.packed import Packed24

Operand = tuple[Tensor, Tensor]
"""values, metadata"""


@contract()
def activation_pack(
    z: Tensor, keep: Tensor | None, activation: str, scale: float, format: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(values, metadata, counts) of p: the two largest of each four of scale * keep * activation(z) along F, packed.

    counts [T/64, F/64, 5] of each block: elements, non-zeros, groups of four with more than two, the sum of what was
    dropped, the sum of all.
    """
    return _empty_state(z, z.shape[0], z.shape[1], format)


@contract()
def activation_backward_pack(
    dp: Tensor,
    p: Packed24,
    activation: str,
    scale: float,
    seed: Tensor,
    estimate_dz: bool,
    estimate_p: bool,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(values of dz [T, F] on p's metadata, packed mvue(dz^T), packed mvue(p^T), sums of dz over T), from one read of
    dp and p; all but the first on request. Both estimates use the one seed.
    """
    (tokens, hidden), form = p.shape, FORMATS[p.format]
    across = FORMATS[form.transposed]
    operands: list[Tensor] = []
    for wanted in (estimate_dz, estimate_p):
        nothing = p.values.new_empty((0,)), p.metadata.new_empty((0,))
        operands += across.empty_whole(hidden, tokens, p.dtype, dp.device) if wanted else nothing
    dz, (v, m, w, n) = form.empty(tokens, hidden, p.dtype, dp.device)[0], operands
    return dz, v, m, w, n, dp.new_empty((hidden if sums else 0,), dtype=_wide(p.dtype))


def _layer(
    x: Tensor,
    up: Tensor | None,
    up_cast: Tensor | None,
    up_bias: Tensor | None,
    keep: Tensor | None,
    down: Tensor,
    down_cast: Tensor,
    down_bias: Tensor | None,
    activation: str,
    scale: float,
    format: str,
    up_layout: str,
    down_layout: str,
    *_: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z = reference.up_projection(x, up_cast, up_bias, up_layout)
    tokens, hidden = z.shape
    flat = None if keep is None else keep.reshape(tokens, hidden)
    values, metadata, counts = providers.run("activation_pack", z, flat, activation, scale, format)
    columns = reference.turned(down_cast, down_layout)
    y = providers.run("mm", values, metadata, tokens, hidden, format, columns, None, "row", x.dtype)
    if down_bias is not None:
        y = y + down_bias.to(y.dtype)
    if x.dim() == 2:
        return y, values, metadata, counts
    rows = y.view(*x.shape[:-1], y.shape[1])
    # No view: autograd lets nobody write to one that an op of ours returns.
    own = rows.new_empty(0).set_(rows.untyped_storage(), rows.storage_offset(), rows.shape, rows.stride())
    return own, values, metadata, counts


@contract(run=_layer)
def activation_layer(
    x: Tensor,
    up: Tensor | None,
    up_cast: Tensor | None,
    up_bias: Tensor | None,
    keep: Tensor | None,
    down: Tensor,
    down_cast: Tensor,
    down_bias: Tensor | None,
    activation: str,
    scale: float,
    format: str,
    up_layout: str,
    down_layout: str,
    dw_up: str,
    dw_down: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y [..., D] = p down^T + down_bias, with p [T, F] of z = x up^T + up_bias; 2:4 in four of its six GEMMs.

        forward    z = x up^T + up_bias           dense        backward   dp = dy down                dense
                   p = activation_pack(z)                                 dz = dp act'(z) on p's places
                   y = p down^T + down_bias       2:4                     dx = dz up                  2:4
                                                                          dup = mvue(dz^T) x          2:4, or dense
                                                                          ddown^T = mvue(p^T) dy      2:4, or dense

    Without the estimates these are the exact gradients of the forward. All that is kept of [T, F] for them is p.

    Args:
        x: [..., D] in the dtype that is computed in. Where `up` is None, z itself [..., F].
        up, down: the parameters, "out_in" ([F, D], [D, F]) or "in_out" (transposed). Never read: they receive the
            weight gradients, each in its own dtype and layout.
        up_cast, down_cast: the same numbers in the dtype of x.
        keep: bool [..., F], what a dropout on the hidden state lets through. scale: see `activation_pack`.
        dw_up, dw_down: "mvue" or "dense".

    Returns:
        (y, values of p, metadata of p, counts). Only y is differentiable.
    """
    width, hidden = down.shape if down_layout == "out_in" else down.shape[::-1]
    # Not Size.numel(), which takes symbols for constants.
    return x.new_empty((*x.shape[:-1], width)), *_empty_state(x, math.prod(x.shape[:-1]), hidden, format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, up, up_cast, up_bias, _, down, down_cast, down_bias, *options = inputs
    ctx.activation, ctx.scale, ctx.format, ctx.up_layout, ctx.down_layout, ctx.dw_up, ctx.dw_down = options
    _, values, metadata, counts = output
    ctx.mark_non_differentiable(values, metadata, counts)
    ctx.dtypes = [None if t is None else t.dtype for t in (up, up_bias, down, down_bias)]
    ctx.x_shape = x.shape
    needs_x, needs_up, _, needs_up_bias, _, needs_down = ctx.needs_input_grad[:6]
    ctx.needs_dz = needs_x or needs_up or needs_up_bias
    ctx.save_for_backward(
        x if needs_up else None,
        up_cast if needs_x else None,
        down_cast if ctx.needs_dz else None,
        *((values, metadata) if ctx.needs_dz or needs_down else (None, None)),
    )


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # only under create_graph=True
        raise LoweringError(
            node="s24::activation_layer",
            found="a second derivative was asked for (create_graph=True)",
            accepted="which places of the hidden state are kept is constant to autograd; use set_phase(model, 'dense') "
            "for this step",
        )
    x, up_cast, down_cast, values, metadata = ctx.saved_tensors
    needs_x, needs_up, _, needs_up_bias, _, needs_down, _, needs_down_bias, *_ = ctx.needs_input_grad
    up_dtype, up_bias_dtype, down_dtype, down_bias_dtype = ctx.dtypes
    flat = dy.reshape(-1, dy.shape[-1])
    estimate_p = needs_down and ctx.dw_down == "mvue"
    estimate_dz = needs_up and ctx.dw_up == "mvue"
    grad_x = grad_up = grad_up_bias = grad_down = grad_down_bias = None
    of_p: Sequence[Tensor] = ()
    if ctx.needs_dz:
        dp = torch.mm(flat, down_cast if ctx.down_layout == "out_in" else down_cast.t())
        p = values, metadata, *dp.shape, ctx.format
        options = ctx.activation, ctx.scale, gemm._seed(dy), estimate_dz, estimate_p, needs_up_bias
        dz, *packs, sums = activation_backward_pack(dp, *p, *options)
        of_dz, of_p = packs[:2], packs[2:]
        if needs_up:
            dense = x.reshape(-1, x.shape[-1])
            grad_up = _grad_weight(ctx, of_dz, (dz, metadata), dense, ctx.dw_up, ctx.up_layout == "out_in", up_dtype)
        if needs_x:
            grad_x = _grad_x(ctx, dz, metadata, up_cast).view(ctx.x_shape)
        grad_up_bias = sums.to(up_bias_dtype) if needs_up_bias else None
    elif estimate_p:
        dense = unpack(*_flat(ctx, values, metadata))
        of_p = mvue_pack(dense, gemm._seed(dy), dense.dtype, FORMATS[ctx.format].transposed)
    if needs_down:
        # p^T dy is [F, D]: the weight is its transpose.
        as_it_is = ctx.down_layout == "in_out"
        grad_down = _grad_weight(ctx, of_p, (values, metadata), flat, ctx.dw_down, as_it_is, down_dtype)
    grad_down_bias = gemm._sum(flat, 0).to(down_bias_dtype) if needs_down_bias else None
    return grad_x, grad_up, None, grad_up_bias, None, grad_down, None, grad_down_bias, *(None,) * 7


activation_layer.register_autograd(_backward, setup_context=_setup)


def _grad_x(ctx: Any, dz: Tensor, metadata: Tensor, up_cast: Tensor | None) -> Tensor:
    """dx [T, D] = dz up; without an up projection, dz itself."""
    if up_cast is None:
        return unpack(*_flat(ctx, dz, metadata))
    weight = up_cast if ctx.up_layout == "out_in" else up_cast.t()
    return gemm.mm(*_flat(ctx, dz, metadata), weight, None, "row", dz.dtype)


def _grad_weight(
    ctx: Any, estimate: Sequence[Tensor], exact: Operand, other: Tensor, dw: str, as_it_is: bool, dtype: torch.dtype
) -> Tensor:
    """[F, D] = S^T other, or its transpose, contiguous, in `dtype`: S [T, F] packed in `exact`, S^T in `estimate`."""
    _, _, tokens, hidden, format = _flat(ctx, *exact)
    if dw == "mvue":
        form, layout = FORMATS[format].transposed, "row" if as_it_is else "col"
        whole = gemm.mm(*estimate, hidden, tokens, form, other, None, layout, dtype)
        return whole if as_it_is else whole.t()
    dense = unpack(*exact, tokens, hidden, format)
    return (torch.mm(dense.t(), other) if as_it_is else torch.mm(other.t(), dense)).to(dtype)


def _flat(ctx: Any, values: Tensor, metadata: Tensor) -> tuple[Tensor, Tensor, int, int, str]:
    """A packed [T, F] as the schemas of ops have it; F is a multiple of 4."""
    return values, metadata, values.shape[0], values.shape[1] * 2, ctx.format


def _empty_state(like: Tensor, tokens: int, hidden: int, format: str) -> tuple[Tensor, Tensor, Tensor]:
    """(values, metadata, counts) of a hidden state [T, F] in the dtype of `like`."""
    values, metadata = FORMATS[format].empty(tokens, hidden, like.dtype, like.device)
    blocks = [(size + reference.BLOCK - 1) // reference.BLOCK for size in (tokens, hidden)]
    return values, metadata, like.new_empty((*blocks, 5), dtype=_wide(like.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
