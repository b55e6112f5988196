"""The contract of a dense linear whose three GEMMs multiply eight-bit floats: what a layer that is trained in them runs
where it has no 2:4 operand, in a dense phase and, under targets="down", in its up projections.

Legend: T tokens (all leading dims of x, flattened), K input features, N output features.

                  A          B, column-major     both along
    Y  = X W^T    X          W^T                 K
    dX = dZ W     dZ         W                   N
    dW = dZ^T X   dZ^T       X                   T

The weight is quantised here, by its own amax, both ways: like its operands in 16 bits, anew for each forward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from s24compile.kernels.ops import gemm
from s24compile.kernels.ops.contract import contract
from s24compile.kernels.ops.fp8 import amax, quantise
from s24compile.kernels.ops.fp8_linear import (
    EXACT,
    FORWARD,
    GRADIENT,
    dense_weight_gradient,
    refuse_second_derivative,
)
from s24compile.kernels.ops.scaled import scaled_dense
from s24compile.kernels.padding import empty_rows


def _scaled_dense_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype, weight_layout: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    q, x_t, descale_x = quantise(rows, amax(rows), FORWARD, "both")
    w, w_t, descale = quantise(weight, amax(weight), FORWARD, "both")
    w, w_t = (w, w_t) if weight_layout == "out_in" else (w_t, w)
    y = scaled_dense(q, descale_x, w.t(), descale, bias, out_dtype, EXACT)
    return y.view(*x.shape[:-1], y.shape[1]) if x.dim() != 2 else y, x_t, descale_x, w_t, descale


@contract(run=_scaled_dense_linear)
def scaled_dense_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_dtype: torch.dtype, weight_layout: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y [..., N] = x [..., K] W^T + bias, x^T [K, T] in e4m3, its descale, W^T [K, N] in e4m3, its descale).

    Args:
        x: any leading dims, strides and float dtype.
        weight: W [N, K] for "out_in", its transpose for "in_out"; any float dtype.
        out_dtype: of y.
    """
    n, k = weight.shape if weight_layout == "out_in" else weight.shape[::-1]
    # Not Size.numel(), which takes symbols for constants.
    tokens, one = math.prod(x.shape[:-1]), x.new_empty((1,), dtype=torch.float32)
    y = x.new_empty((*x.shape[:-1], n), dtype=out_dtype)
    x_t, w_t = (empty_rows(k, cols, FORWARD, x.device) for cols in (tokens, n))
    return y, x_t, one, w_t, torch.empty_like(one)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, ctx.weight_layout = inputs
    _, x_t, descale_x, w_t, descale = output
    ctx.mark_non_differentiable(x_t, descale_x, w_t, descale)
    ctx.set_materialize_grads(False)
    ctx.x_shape, ctx.x_dtype = x.shape, x.dtype
    ctx.weight_dtypes, ctx.bias_dtype = [weight.dtype], None if bias is None else bias.dtype
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        *((x_t, descale_x) if needs_weight else (None, None)), *((w_t, descale) if needs_x else (None, None))
    )


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    refuse_second_derivative("s24::scaled_dense_linear")
    assert dy is not None, "no other output has a gradient"
    x_t, descale_x, w_t, descale = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    dz = dy.reshape(-1, dy.shape[-1])
    grad_x = grad_weight = None
    if needs_x or needs_weight:
        layout = "both" if needs_x and needs_weight else "row" if needs_x else "col"
        q, dz_t, descale_dz = quantise(dz, amax(dz), GRADIENT, layout)
        if needs_x:
            grad_x = scaled_dense(q, descale_dz, w_t.t(), descale, None, ctx.x_dtype, EXACT).view(ctx.x_shape)
        if needs_weight:
            whole = dense_weight_gradient(ctx, dz_t, descale_dz, x_t, descale_x)  # [N, K]
            grad_weight = (whole if ctx.weight_layout == "out_in" else whole.t()).contiguous()
    grad_bias = gemm._sum(dz, 0).to(ctx.bias_dtype) if needs_bias else None
    return grad_x, grad_weight, grad_bias, None, None


scaled_dense_linear.register_autograd(_backward, setup_context=_setup)
