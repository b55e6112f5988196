"""Contracts of the 2:4 GEMM and of the sparse linear with its three GEMMs.

Legend: T tokens (all leading dims of x, flattened), K input features, N output features (rows of all stacked weights).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from s24compile.errors import LoweringError
from s24compile.kernels import providers
from s24compile.kernels.format import FORMATS
from s24compile.kernels.ops.contract import contract
from s24compile.kernels.ops.estimation import mvue_pack
from s24compile.kernels.ops.packing import unpack
from s24compile.kernels.packed import Packed24


@contract()
def mm(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """[rows, n] = packed [rows, cols] @ b [cols, n] + bias [rows]; strides (n, 1) or, for "col", (1, rows)."""
    rows, n = a.shape[0], b.shape[1]
    if out_layout == "row":
        return b.new_empty((rows, n), dtype=out_dtype)
    return b.new_empty((n, rows), dtype=out_dtype).t()


def _mm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, metadata, ctx.rows, ctx.cols, ctx.format, b, bias, _, _ = inputs
    ctx.b_dtype, ctx.bias_dtype = b.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(values, metadata)


def _mm_backward(ctx: Any, dc: Tensor) -> tuple[Any, ...]:
    """db = A^T dC with A unpacked (a packed A is 2:4 along its rows only); dbias = row sums of dC, in fp32."""
    values, metadata = ctx.saved_tensors
    db = dbias = None
    if ctx.needs_input_grad[5]:
        dense = unpack(values, metadata, ctx.rows, ctx.cols, ctx.format)
        db = torch.mm(dense.t(), dc.to(dense.dtype)).to(ctx.b_dtype)
    if ctx.needs_input_grad[6]:
        dbias = _sum(dc, 1).to(ctx.bias_dtype)
    return None, None, None, None, None, db, dbias, None, None


mm.register_autograd(_mm_backward, setup_context=_mm_setup)


def _linear(x: Tensor, weights: Sequence[Tensor], values: Tensor, metadata: Tensor, *rest: Any) -> Tensor:
    _, _, bias, format, *_ = rest
    n, k = values.shape[0], x.shape[-1]
    columns = x.reshape(-1, k).to(values.dtype).t()
    y = providers.run("mm", values, metadata, n, k, format, columns, bias, "col", values.dtype)
    return with_leading_dims(y, x.shape)


def with_leading_dims(y: Tensor, shape: torch.Size) -> Tensor:
    """[..., N], the leading dims those of `shape`, of a column-major [N, T]; in the same memory."""
    rows = y.t().view(*shape[:-1], y.shape[0])
    # No view: autograd lets nobody write to one that an op of ours returns.
    return rows.new_empty(0).set_(rows.untyped_storage(), rows.storage_offset(), rows.shape, rows.stride())


@contract(run=_linear)
def linear(
    x: Tensor,
    weights: Sequence[Tensor],
    values: Tensor,
    metadata: Tensor,
    values_t: Tensor | None,
    metadata_t: Tensor | None,
    bias: Tensor | None,
    format: str,
    weight_layout: str,
    dx: str,
    dw: str,
) -> Tensor:
    """y [..., N] = x [..., K] @ W~^T + bias, with the fully sparse backward. [FST 3; S-STE 4]

    Args:
        x: any leading dims and strides; cast to the dtype of `values`, which is also y's.
        weights: the dense parameters whose logical rows are stacked in W~, [n_i, K] ("out_in") or [K, n_i]
            ("in_out"). Never read: they only receive the weight gradient, each in its own dtype and layout.
        values, metadata: packed W~ [N, K].
        values_t, metadata_t: packed W~^T [K, N]; needed where x has a gradient and dx is "sparse".
        dx: dX = dZ W~ by the packed W~^T ("sparse"), by the dense one ("dense"), or "mvue": dZ itself is replaced
            by its MVUE along N (S-STE's option).
        dw: dW = MVUE(dZ^T) X ("mvue") or dZ^T X ("dense"). Straight-through: it reaches pruned weights too.
    """
    return x.new_empty((*x.shape[:-1], values.shape[0]), dtype=values.dtype)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weights, values, metadata, values_t, metadata_t, bias, ctx.format, ctx.weight_layout, ctx.dx, ctx.dw = inputs
    ctx.weight_dtypes = [w.dtype for w in weights]
    ctx.weight_rows = [w.shape[0 if ctx.weight_layout == "out_in" else 1] for w in weights]
    ctx.x_shape, ctx.x_dtype, ctx.bias_dtype = x.shape, x.dtype, None if bias is None else bias.dtype
    if ctx.dx == "sparse" and values_t is None:  # x was taken for one without gradient when the graph was compiled
        ctx.dx = "dense"
    needs_x, needs_weights = ctx.needs_input_grad[0], any(w.requires_grad for w in weights)
    # Keep only what the backward will read: packed weights for dX, x for dW.
    operand = () if not needs_x else (values_t, metadata_t) if ctx.dx == "sparse" else (values, metadata)
    ctx.save_for_backward(x if needs_weights else None, *operand)


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # only under create_graph=True; W~ is packed, so its share would silently be missing
        raise LoweringError(
            node="s24::linear",
            found="a second derivative was asked for (create_graph=True)",
            accepted="the packed weights are constants to autograd; use set_phase(model, 'dense') for this step",
        )
    x, *operand = ctx.saved_tensors
    needs_x, needs_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    dz = dy.reshape(-1, dy.shape[-1])
    grad_weights: list[Tensor | None] = [None] * len(ctx.weight_dtypes)
    if any(needs_weights):
        grads = _grad_weights(ctx, dz, x.reshape(-1, x.shape[-1]).to(dz.dtype))
        grad_weights = [g if needed else None for g, needed in zip(grads, needs_weights, strict=True)]
    # After dW, the last reader of x: in a layer's last linear x is H and dX is dH, both [T, F], and H is free before
    # dH is made.
    grad_x = _grad_x(ctx, dz, *operand).view(ctx.x_shape) if needs_x else None
    grad_bias = _sum(dz, 0).to(ctx.bias_dtype) if ctx.needs_input_grad[6] else None
    return grad_x, grad_weights, None, None, None, None, grad_bias, None, None, None, None


def _grad_x(ctx: Any, dz: Tensor, values: Tensor, metadata: Tensor) -> Tensor:
    """dX [T, K] in x's dtype, row-major."""
    (_, n), k, form = dz.shape, ctx.x_shape[-1], FORMATS[ctx.format].transposed
    if ctx.dx == "sparse":
        return mm(values, metadata, k, n, form, dz.t(), None, "col", ctx.x_dtype).t()
    dense = unpack(values, metadata, n, k, ctx.format)
    if ctx.dx == "dense":
        return torch.mm(dz, dense).to(ctx.x_dtype)
    pruned, places = mvue_pack(dz.t(), _seed(dz), dz.dtype, form)  # [T, N], groups along N
    return mm(pruned, places, dz.shape[0], n, form, dense, None, "row", ctx.x_dtype)


def _grad_weights(ctx: Any, dz: Tensor, x: Tensor) -> list[Tensor]:
    """dW of each parameter, in its own layout and dtype, contiguous. dz [T, N], x [T, K]."""
    dtype, stored_out_in = ctx.weight_dtypes[0], ctx.weight_layout == "out_in"
    if ctx.dw == "mvue":
        form = FORMATS[ctx.format].transposed
        pruned, places = mvue_pack(dz, _seed(dz), dz.dtype, form)
        layout = "row" if stored_out_in else "col"
        whole = mm(pruned, places, dz.shape[1], dz.shape[0], form, x, None, layout, dtype)
    else:
        whole = torch.mm(dz.t(), x) if stored_out_in else torch.mm(x.t(), dz).t()
    return parts_of(ctx, whole)


def parts_of(ctx: Any, whole: Tensor) -> list[Tensor]:
    """dW [N, K] of all stacked weights as that of each, in its own layout and dtype, contiguous."""
    parts = whole.split(ctx.weight_rows)
    own = parts if ctx.weight_layout == "out_in" else [part.t() for part in parts]
    return [part.to(dtype).contiguous() for part, dtype in zip(own, ctx.weight_dtypes, strict=True)]


def _seed(like: Tensor) -> Tensor:
    """A fresh seed from torch's generator of the device: Inductor makes this functional and CUDA-graph safe."""
    return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=like.device)


def _sum(x: Tensor, dim: int) -> Tensor:
    """Sum over `dim`, in fp32 at least."""
    return x.sum(dim, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


linear.register_autograd(_linear_backward, setup_context=_linear_setup)
