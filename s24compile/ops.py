"""The functional API: each function checks what people pass and calls one registered op of namespace `s24`.

All run on CPU through the references and on CUDA through the best kernel, and have fake kernels, so they may be
traced. `mm`, `linear`, `glu` and `soft_threshold` are differentiable in their dense arguments; the others cut the
graph. Legend: m, n, k rows and columns of matrices; T tokens; F hidden width; groups of four lie along the
contraction dim, the last one unless said otherwise.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from s24compile.errors import ArgumentError, DtypeError, ShapeError
from s24compile.kernels import ops as _ops
from s24compile.kernels.activations import DENSE, SPARSE
from s24compile.kernels.checks import (
    check_choice,
    check_floating,
    check_hidden,
    check_matrix,
    check_multiple,
    check_packable,
    check_packed,
    check_same_device,
    check_same_shape,
    check_tensor,
    device_format,
    outside_inference_mode,
    seed_tensor,
)
from s24compile.kernels.format import FORMATS
from s24compile.kernels.packed import Packed24

__all__ = [
    "Packed24",
    "activation_backward_pack",
    "activation_linear",
    "activation_pack",
    "flip_rate",
    "glu",
    "linear",
    "magnitude_mask",
    "masked_decay_",
    "mm",
    "mvue",
    "mvue_pack",
    "pack",
    "pack_both",
    "soft_threshold",
    "soft_threshold_scale",
    "transposable_mask",
    "unpack",
]


def transposable_mask(w: Tensor) -> Tensor:
    """The best of the 90 transposable patterns per 4x4 block: the mask that keeps the largest sum of |w|. [FST 5.1]

    Args:
        w: [m, n], m and n multiples of 4.

    Returns:
        bool [m, n]; two ones in every four neighbours of a row, and of a column. Ties take the pattern that is
        first in descending order of its bits; a block with a NaN takes the first of all (1100/1100/0011/0011).

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
    """
    check_matrix("w", w)
    check_multiple("w", w, (0, 1))
    return _ops.transposable_mask(w.detach())


def magnitude_mask(w: Tensor) -> Tensor:
    """The two largest magnitudes of each four along the last dim, as a bool mask of w's shape.

    Ties keep the lower index; NaN counts as larger than Inf; always exactly two.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
    """
    check_floating("w", w)
    check_multiple("w", w, (-1,))
    return _ops.magnitude_mask(w.detach())


def soft_threshold(w: Tensor) -> Tensor:
    """S(w) [S-STE 4]: the two largest of each four shrunk by the second-smallest magnitude, 0 elsewhere.

    Continuous in w. The gradient passes through unchanged (straight-through).

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
    """
    check_floating("w", w)
    check_multiple("w", w, (-1,))
    return _ops.soft_threshold(w)


def soft_threshold_scale(w: Tensor) -> Tensor:
    """beta = <w, S(w)> / <S(w), S(w)> [S-STE 5]: 0-d fp32; 1 where S(w) is zero.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
    """
    check_floating("w", w)
    check_multiple("w", w, (-1,))
    return _ops.soft_threshold_scale(w.detach())


def mvue(g: Tensor, *, dim: int = -1, seed: int | Tensor | None = None) -> Tensor:
    """Unbiased 2:4 estimate of g along `dim`, of least variance. [Chmiel et al., ICLR 2023]

    A draw depends on (seed, row, place along dim) only, so ``mvue(g, dim=0, seed=s) == mvue(g.T, seed=s).T``.

    Args:
        g: any shape and strides; the size of `dim` is a multiple of 4 (`mvue_pack` pads instead).
        seed: int, one-element integer Tensor, or None to draw one from torch's generator of g's device.

    Returns:
        Contiguous, of g's shape and dtype. A group with Inf or NaN keeps two NaNs.

    Raises:
        ArgumentError, ShapeError, DtypeError, OptionError: an argument that the op does not take.
    """
    check_floating("g", g)
    if g.dtype.itemsize == 1:
        raise DtypeError(what="g", dtype=g.dtype, accepted="an estimate needs 16 bits; `mvue_pack` casts kept values")
    check_multiple("g", g, (dim,))
    return _ops.mvue(g.detach(), seed_tensor(seed, g.device), dim)


def pack(w: Tensor, mask: Tensor | None = None, *, dtype: torch.dtype | None = None) -> Packed24:
    """Packs w * mask into kept values and their positions.

    Args:
        w: [m, k], any strides.
        mask: [m, k], at most two ones in each four of a row. None: w must hold at most two non-zeros there itself.
        dtype: of the kept values; None for w's. fp8 (e4m3fn, e5m2) and int8 are plain casts that saturate.

    Raises:
        MaskError: more than two ones in a group. On CUDA a given mask is not checked (a host sync); two are kept.
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_matrix("w", w)
    check_multiple("w", w, (1,))
    check_packable(dtype or w.dtype)
    if mask is not None:
        check_same_shape("mask", mask, "w", w)
        check_same_device("pack", w=w, mask=mask)
        mask = mask.bool()
    dtype, format = dtype or w.dtype, device_format(w.device)
    with outside_inference_mode():
        values, metadata = _ops.pack(w.detach(), mask, dtype, format)
    return Packed24(values, metadata, (w.shape[0], w.shape[1]), dtype, format)


def unpack(p: Packed24) -> Tensor:
    """The dense [m, k] matrix, contiguous, in p's dtype.

    Raises:
        ArgumentError: p is not packed.
    """
    check_packed("p", p)
    return _ops.unpack(p.values, p.metadata, *p.shape, p.format)


def pack_both(w: Tensor, mask: Tensor, *, dtype: torch.dtype | None = None) -> tuple[Packed24, Packed24]:
    """Packs w * mask and its transpose. The mask must be 2:4 along rows and columns (`transposable_mask`).

    Raises:
        MaskError: more than two ones in a group of a row or a column (not checked on CUDA).
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_matrix("w", w)
    check_multiple("w", w, (0, 1))
    check_packable(dtype or w.dtype)
    check_same_shape("mask", mask, "w", w)
    check_same_device("pack_both", w=w, mask=mask)
    (m, k), dtype, format = w.shape, dtype or w.dtype, device_format(w.device)
    with outside_inference_mode():
        values, metadata, values_t, metadata_t = _ops.pack_both(w.detach(), mask.bool(), dtype, format)
    plain = Packed24(values, metadata, (m, k), dtype, format)
    return plain, Packed24(values_t, metadata_t, (k, m), dtype, format)


def mvue_pack(g: Tensor, *, seed: int | Tensor | None = None, dtype: torch.dtype | None = None) -> Packed24:
    """Packed ``mvue(g.T)``: the sparse operand [F, T] of dW = MVUE(dZ^T) X.

    Args:
        g: [T, F], any strides. T that is no multiple of 4 is padded with zeros; the logical shape stays [F, T].
        seed: as in `mvue`; ``unpack(mvue_pack(g, seed=s)) == mvue(g.T, seed=s)``.
        dtype: of the kept values; None for g's.

    Raises:
        ArgumentError, ShapeError, DtypeError, OptionError: an argument that the op does not take.
    """
    check_matrix("g", g)
    check_packable(dtype or g.dtype)
    dtype, format = dtype or g.dtype, device_format(g.device)
    with outside_inference_mode():
        values, metadata = _ops.mvue_pack(g.detach(), seed_tensor(seed, g.device), dtype, format)
        values, metadata = FORMATS[format].parts(values, metadata, g.shape[1], g.shape[0])
    return Packed24(values, metadata, (g.shape[1], g.shape[0]), dtype, format)


def mm(
    p: Packed24,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    out_layout: Literal["row", "col"] = "row",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """p[m, k] @ b[k, n] + bias[m], summed in fp32 (fp64 for fp64) and rounded once. Differentiable in b and bias.

    Args:
        b: any strides, p's dtype (an 8-bit p takes any 8-bit float).
        out_layout: "row" for strides (n, 1), "col" for (1, m).
        out_dtype: None for p's dtype; for 8-bit values that is the accumulator's, fp32.

    Raises:
        ArgumentError, ShapeError, DtypeError, OptionError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_packed("p", p)
    check_tensor("b", b)
    (m, k), narrow = p.shape, p.dtype.itemsize == 1
    check_choice("out_layout", out_layout, ("row", "col"))
    if b.dim() != 2 or b.shape[0] != k:
        raise ShapeError(what="b", shape=tuple(b.shape), accepted=f"p is {m} x {k}, so b must be [{k}, n]")
    if b.dtype != p.dtype and not (narrow and b.dtype.itemsize == 1):
        raise DtypeError(what="b", dtype=b.dtype, accepted=f"it must be p's, {p.dtype}")
    if bias is not None:
        check_floating("bias", bias)
    if bias is not None and tuple(bias.shape) != (m,):
        raise ShapeError(what="bias", shape=tuple(bias.shape), accepted=f"it must be [{m}], one value per row of p")
    check_same_device("mm", p=p.values, b=b, bias=bias)
    out_dtype = out_dtype or (torch.float32 if narrow else p.dtype)
    if not isinstance(out_dtype, torch.dtype) or not out_dtype.is_floating_point:
        raise DtypeError(what="the result", dtype=out_dtype, accepted="it must be a floating-point torch.dtype")
    return _ops.mm(p.values, p.metadata, m, k, p.format, b, bias, out_layout, out_dtype)


def linear(x: Tensor, p: Packed24, bias: Tensor | None = None) -> Tensor:
    """x[..., k] @ p[m, k].T + bias[m]: [..., m]. Differentiable in x and bias.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_packed("p", p)
    check_tensor("x", x)
    m, k = p.shape
    if x.dim() == 0 or x.shape[-1] != k:
        raise ShapeError(what="x", shape=tuple(x.shape), accepted=f"p is {m} x {k}, so x must be [..., {k}]")
    if x.dtype != p.dtype and p.dtype.itemsize > 1:
        raise DtypeError(what="x", dtype=x.dtype, accepted=f"it must be p's, {p.dtype}")
    rows = x.numel() // k if k else x.shape[:-1].numel()
    return mm(p, x.reshape(rows, k).t(), bias=bias, out_layout="col").t().reshape(*x.shape[:-1], m)


def glu(z: Tensor, *, act: str = "gelu", gate: Literal["first", "second"] = "first") -> Tensor:
    """act(gate half) * other half of z[..., 2F]: [..., F], contiguous. Differentiable.

    Args:
        act: "gelu" (erf), "gelu_tanh", "silu" or "relu".
        gate: the half that the activation sees; "first" in the paper, "second" in its toolkit.

    Raises:
        ArgumentError, ShapeError, DtypeError, OptionError: an argument that the op does not take.
    """
    check_choice("act", act, DENSE)
    check_choice("gate", gate, ("first", "second"))
    check_floating("z", z)
    if z.dim() == 0 or z.shape[-1] % 2:
        raise ShapeError(what="z", shape=tuple(z.shape), accepted="its last dim holds two halves, so it must be even")
    return _ops.glu(z, act, gate)


def activation_pack(z: Tensor, *, act: str = "relu2") -> Packed24:
    """The two largest of each four neighbours of act(z) along F, packed: zeros lose, ties keep the lower index.

    ``unpack(activation_pack(z)) == act(z)`` wherever a group of four holds at most two non-zeros, as nearly all do in a
    trained layer of squared ReLUs [arXiv 2503.16672]. NaN counts as larger than Inf.

    Args:
        z: [T, F], any strides, F a multiple of 16.
        act: "relu2" (max(z, 0) squared) or "relu".

    Raises:
        ArgumentError, ShapeError, DtypeError, OptionError: an argument that the op does not take.
    """
    check_choice("act", act, SPARSE)
    check_hidden("z", z)
    format = device_format(z.device)
    with outside_inference_mode():
        values, metadata, _ = _ops.activation_pack(z.detach(), None, act, 1.0, format)
    return Packed24(values, metadata, (z.shape[0], z.shape[1]), z.dtype, format)


def activation_linear(p: Packed24, w: Tensor, bias: Tensor | None = None) -> Tensor:
    """unpack(p)[T, F] @ w[D, F].T + bias[D]: [T, D], contiguous. Differentiable in w and bias.

    Args:
        p: a hidden state, packed along F; any 2:4 matrix will do.
        w: any strides, p's dtype.

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_packed("p", p)
    check_matrix("w", w)
    hidden = p.shape[1]
    if w.shape[1] != hidden:
        raise ShapeError(
            what="w", shape=tuple(w.shape), accepted=f"p has {hidden} features, so w must be [D, {hidden}]"
        )
    if bias is not None:
        check_floating("bias", bias)
    if bias is not None and tuple(bias.shape) != (w.shape[0],):
        raise ShapeError(what="bias", shape=tuple(bias.shape), accepted=f"it must be [{w.shape[0]}], one per row of w")
    check_same_device("activation_linear", p=p.values, w=w, bias=bias)
    y = mm(p, w.t())
    return y if bias is None else y + bias.to(y.dtype)


def activation_backward_pack(
    dp: Tensor, p: Packed24, *, act: str, seed: int | Tensor | None = None
) -> tuple[Packed24, Packed24, Packed24]:
    """What the backward of a layer multiplies by, from one read of dp and p = activation_pack(z).

    Args:
        dp: [T, F], the gradient of p; any strides.
        p: packed along F; F a multiple of 16.
        act: of the forward, "relu2" or "relu".
        seed: as in `mvue`; both estimates use it.

    Returns:
        dz [T, F] = dp act'(z) where p keeps act(z) and it is not 0, and 0 elsewhere, on p's own places;
        ``mvue(dz.T)`` [F, T] and ``mvue(unpack(p).T)`` [F, T], the operands of the two weight gradients.

    Raises:
        ArgumentError, ShapeError, DtypeError, OptionError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_choice("act", act, SPARSE)
    check_packed("p", p)
    check_hidden("dp", dp)
    if tuple(dp.shape) != tuple(p.shape):
        raise ShapeError(what="dp", shape=tuple(dp.shape), accepted=f"it must be p's, {tuple(p.shape)}")
    check_same_device("activation_backward_pack", dp=dp, p=p.values)
    tokens, hidden = p.shape
    form = FORMATS[p.format].transposed
    with outside_inference_mode():
        found = _ops.activation_backward_pack(
            dp.detach(), *p.flat(), act, 1.0, seed_tensor(seed, dp.device), True, True, False
        )
    dz, *estimates, _ = found
    of_dz = FORMATS[form].parts(estimates[0], estimates[1], hidden, tokens)
    of_p = FORMATS[form].parts(estimates[2], estimates[3], hidden, tokens)
    return (
        Packed24(dz, p.metadata, (tokens, hidden), p.dtype, p.format),
        Packed24(*of_dz, (hidden, tokens), p.dtype, form),
        Packed24(*of_p, (hidden, tokens), p.dtype, form),
    )


def masked_decay_(grad: Tensor, w: Tensor, mask: Tensor, alpha: float) -> None:
    """grad += alpha * w where `mask` is False, in place. [FST 4.2]

    Raises:
        ArgumentError, ShapeError, DtypeError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_floating("grad", grad)
    check_floating("w", w)
    check_same_shape("w", w, "grad", grad)
    check_same_shape("mask", mask, "grad", grad)
    check_same_device("masked_decay_", grad=grad, w=w, mask=mask)
    if not isinstance(alpha, (int, float, Tensor)):
        raise ArgumentError(what="alpha", found=type(alpha).__name__, accepted="it must be a number")
    with torch.no_grad():
        _ops.masked_decay_(grad, w, mask.bool(), float(alpha))


def flip_rate(mask_before: Tensor, mask_after: Tensor) -> float:
    """|M_t - M_{t-1}|_1 / D [FST 4.1]: the share of entries where two masks of one shape differ.

    Raises:
        ArgumentError, ShapeError: an argument that the op does not take.
        TargetError: arguments on different devices.
    """
    check_same_shape("mask_after", mask_after, "mask_before", mask_before)
    check_same_device("flip_rate", mask_before=mask_before, mask_after=mask_after)
    return float(_ops.flip_rate(mask_before.bool(), mask_after.bool()))
