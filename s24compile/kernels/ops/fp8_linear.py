"""The contract of the sparse linear whose three GEMMs multiply eight-bit floats.

Legend: T tokens (all leading dims of x, flattened), K input features, N output features (rows of all stacked weights).

                    A                     B         both along
    Y   = X W~^T    W~ packed             X         K
    dX  = dZ W~     W~^T packed           dZ        N           (or dZ and W~ dense, or MVUE(dZ) packed and W~)
    dW  = dZ^T X    MVUE(dZ^T) packed     X^T       T           (or dZ^T dense)

Weights and activations are in e4m3, gradients in e5m2, each tensor with one scale, from its own amax (`scaling.py`).
The tensor cores read eight-bit operands along the contraction dim alone, so the forward writes X^T too, from the same
read of x, and the backward keeps that instead of x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s24compile.errors import LoweringError
from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops import gemm
from s24compile.kernels.ops.contract import contract
from s24compile.kernels.ops.fp8 import amax, quantise, quantise_pack, unpack_transposed
from s24compile.kernels.ops.scaled import scaled_dense, scaled_mm
from s24compile.kernels.padding import empty_rows

FORWARD, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2
"""What weights and activations are quantised to, and what gradients are."""
EXACT = False
"""Whether sums are kept in fp32 registers (`Signature.sums`): not in the forward, nor for gradients."""


def _scaled_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    values: Tensor,
    metadata: Tensor,
    descale: Tensor,
    probes: Sequence[Tensor],
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    format: str,
    weight_layout: str,
    dx: str,
    dw: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, k = values.shape[0], x.shape[-1]
    rows = x.reshape(-1, k)
    largest = amax(rows)
    q, x_t, descale_x = quantise(rows, largest, FORWARD, "both")
    y = scaled_mm(values, metadata, n, k, format, descale, q.t(), descale_x, bias, "col", out_dtype, EXACT)
    return gemm.with_leading_dims(y, x.shape), x_t, descale_x, largest


@contract(run=_scaled_linear)
def scaled_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    values: Tensor,
    metadata: Tensor,
    descale: Tensor,
    probes: Sequence[Tensor],
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    bias: Tensor | None,
    out_dtype: torch.dtype,
    format: str,
    weight_layout: str,
    dx: str,
    dw: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y [..., N] = x [..., K] @ W~^T + bias, x^T in e4m3 [K, T], its descale, amax of x), with a backward of y.

    Args:
        x: any leading dims, strides and float dtype.
        weights, weight_layout, dx, dw: as in `s24::linear`.
        values, metadata: packed W~ [N, K] in e4m3.
        descale: fp32 [1]: W~ is what is packed times it, and so is W~^T.
        probes: none, or two of fp32 [1], whose gradients are amax of x and of dy: numbers to look at, no derivatives.
        values_t, metadata_t: packed W~^T [K, N]; needed where x has a gradient and dx is "sparse".
        out_dtype: of y.
    """
    tokens, k = math.prod(x.shape[:-1]), x.shape[-1]  # Size.numel() would take symbols for constants
    x_t = empty_rows(k, tokens, FORWARD, x.device)
    one = x.new_empty((1,), dtype=torch.float32)
    return x.new_empty((*x.shape[:-1], values.shape[0]), dtype=out_dtype), x_t, one, torch.empty_like(one)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weights, values, metadata, descale, probes, values_t, metadata_t, bias, _, *options = inputs
    ctx.format, ctx.weight_layout, dx, dw = options
    _, x_t, descale_x, largest = output
    ctx.mark_non_differentiable(x_t, descale_x, largest)
    ctx.set_materialize_grads(False)
    ctx.weight_dtypes = [w.dtype for w in weights]
    ctx.weight_rows = [w.shape[0 if ctx.weight_layout == "out_in" else 1] for w in weights]
    ctx.x_shape, ctx.x_dtype, ctx.bias_dtype = x.shape, x.dtype, None if bias is None else bias.dtype
    # x was taken for one without gradient when the graph was compiled, where W~^T is missing.
    ctx.dx, ctx.dw = "dense" if dx == "sparse" and values_t is None else dx, dw
    needs_x, needs_weights = ctx.needs_input_grad[0], any(w.requires_grad for w in weights)
    operand = () if not needs_x else (values_t, metadata_t) if ctx.dx == "sparse" else (values, metadata)
    kept = (x_t, descale_x) if needs_weights else (None, None)
    ctx.save_for_backward(largest if probes else None, *kept, descale, *operand)


def refuse_second_derivative(op: str) -> None:
    """Raises LoweringError in a backward under create_graph=True: parts of the second derivative would be missing."""
    if torch.is_grad_enabled():
        raise LoweringError(
            node=op,
            found="a second derivative was asked for (create_graph=True)",
            accepted="what is quantised is constant to autograd; train with precision='auto', and for this step in the "
            "dense phase: set_phase(model, 'dense')",
        )


def _backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Any, ...]:
    refuse_second_derivative("s24::scaled_linear")
    assert dy is not None, "no other output has a gradient"
    largest_x, x_t, descale_x, descale, *operand = ctx.saved_tensors
    needs_x, needs_weights, needs_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[8]
    dz = dy.reshape(-1, dy.shape[-1])
    reads_rows = needs_x and ctx.dx != "mvue"
    pruned, dense = any(needs_weights) and ctx.dw == "mvue", any(needs_weights) and ctx.dw == "dense"
    largest = amax(dz) if reads_rows or pruned or dense or needs_x else None
    q = descale_dz = grad_bias = None
    grad_weights: list[Tensor | None] = [None] * len(ctx.weight_dtypes)
    grads: list[Tensor] = []
    if pruned:
        form = FORMATS[ctx.format].transposed
        q, values, metadata, descale_dz, descale_p, sums = quantise_pack(
            dz, largest, gemm._seed(dz), GRADIENT, form, reads_rows, needs_bias
        )
        grad_bias = sums if needs_bias else None
        packed = (values, metadata, dz.shape[1], dz.shape[0], form, descale_p)
        layout = "row" if ctx.weight_layout == "out_in" else "col"
        whole = scaled_mm(*packed, x_t.t(), descale_x, None, layout, ctx.weight_dtypes[0], EXACT)
        grads = gemm.parts_of(ctx, whole)
    elif reads_rows or dense:
        layout = "both" if reads_rows and dense else "row" if reads_rows else "col"
        q, dz_t, descale_dz = quantise(dz, largest, GRADIENT, layout)
        if dense:
            whole = dense_weight_gradient(ctx, dz_t, descale_dz, x_t, descale_x)
            grads = gemm.parts_of(ctx, whole)
    if grads:
        grad_weights = [g if needed else None for g, needed in zip(grads, needs_weights, strict=True)]
    grad_x = _grad_x(ctx, dz, largest, q, descale_dz, descale, *operand).view(ctx.x_shape) if needs_x else None
    if needs_bias:
        grad_bias = (gemm._sum(dz, 0) if grad_bias is None else grad_bias).to(ctx.bias_dtype)
    seen = [] if largest_x is None else [largest_x, largest]
    return grad_x, grad_weights, None, None, None, seen, None, None, grad_bias, None, None, None, None, None


def dense_weight_gradient(ctx: Any, dz_t: Tensor, descale_dz: Tensor, x_t: Tensor, descale_x: Tensor) -> Tensor:
    """dW [N, K], its memory that of the parameter's layout, from dZ^T [N, T] and X^T [K, T]."""
    dtype = ctx.weight_dtypes[0]
    if ctx.weight_layout == "out_in":
        return scaled_dense(dz_t, descale_dz, x_t.t(), descale_x, None, dtype, EXACT)
    return scaled_dense(x_t, descale_x, dz_t.t(), descale_dz, None, dtype, EXACT).t()


def _grad_x(
    ctx: Any,
    dz: Tensor,
    largest: Tensor | None,
    q: Tensor | None,
    descale_dz: Tensor | None,
    descale: Tensor,
    values: Tensor,
    metadata: Tensor,
) -> Tensor:
    """dX [T, K] in x's dtype, row-major. q [T, N]: dZ in eight bits, unless it is pruned."""
    (tokens, n), k, form = dz.shape, ctx.x_shape[-1], FORMATS[ctx.format].transposed
    if ctx.dx == "sparse":
        assert q is not None, "dX reads dZ row by row"
        packed = (values, metadata, k, n, form, descale)
        return scaled_mm(*packed, q.t(), descale_dz, None, "col", ctx.x_dtype, EXACT).t()
    dense = unpack_transposed(values, metadata, n, k, ctx.format).t()
    if ctx.dx == "dense":
        return scaled_dense(q, descale_dz, dense, descale, None, ctx.x_dtype, EXACT)
    _, pruned, places, _, descale_p, _ = quantise_pack(
        dz.t(), largest, gemm._seed(dz), GRADIENT, form, False, False
    )  # [T, N], groups along N
    return scaled_mm(pruned, places, tokens, n, form, descale_p, dense, descale, None, "row", ctx.x_dtype, EXACT)


scaled_linear.register_autograd(_backward, setup_context=_setup)
