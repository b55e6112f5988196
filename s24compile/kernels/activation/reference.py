"""2:4 hidden states of ReLU and squared-ReLU layers, and the one pass that their backward makes over memory.
[arXiv 2503.16672; Primer, arXiv 2109.08668]

Legend: T tokens, F hidden width; z = x w1^T + b1 and dp = dy w2 [T, F]; r = max(z, 0); s = 1 / (1 - p) of a dropout.

    relu2    h = s r^2     dz = dp 2 s r = dp 2 sqrt(s h)
    relu     h = s r       dz = dp s
    p = the two largest of each four neighbours of h along F;  dz where p keeps h and h > 0, and 0 elsewhere

h >= 0, so a zero loses to everything: a group with at most two non-zeros is p exactly. Arithmetic is fp32 (fp64 for
fp64) in this order, h rounded once to z's dtype before it is compared, so that ties are those of the dense layer.

Why the backward takes r from p, and no r is kept beside it: p is within half an ulp of s r^2, so 2 sqrt(s p) is within
a quarter of one of 2 s r, and dz, rounded once more, within 0.75 ulp of the exact product, where the dense layer, which
keeps r, is within 0.5. That holds in fp16 down to r = 2**-7, where r^2 leaves the normal numbers. Below it the slope is
off by less than 2**-12, which is what rounding takes from a slope of 0.5; where r < 2**-12.5 the forward has h = 0, in
the dense layer too, and 0 is the gradient of that. From r = 256 on h is Inf in fp16, and so is the slope. In bf16, a
slope below 2**-49 counts as 0: square roots are exact without branches only from TINY on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS, code_table
from s24compile.kernels.gemm.reference import mm
from s24compile.kernels.masks.reference import magnitude_mask, magnitude_patterns
from s24compile.kernels.mvue.reference import column_sums, mvue_pack
from s24compile.kernels.pack.reference import gather_kept, places_of, write
from s24compile.kernels.packed import Packed24
from s24compile.kernels.patterns import PAIR_CODES
from s24compile.kernels.rounding import widen

TINY = 2.0**-100
"""The smallest h (times s) that has a slope."""

BLOCK = 64
"""Tokens and features of one block of counts: an atom of metadata."""


def hidden_state(z: Tensor, keep: Tensor | None, activation: str, scale: float) -> Tensor:
    """h [T, F] in z's dtype. A NaN stays one; where `keep` is False, h is multiplied by 0, as dropout does."""
    wide = widen(z)
    r = wide.masked_fill(wide <= 0, 0.0)
    h = r * r if activation == "relu2" else r
    if keep is not None:
        h = h * torch.where(keep, scale, 0.0).to(h.dtype)
    elif scale != 1.0:
        h = h * scale
    return h.to(z.dtype)


def activation_pack(
    z: Tensor, keep: Tensor | None, activation: str, scale: float, format: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Packs the two largest of each four neighbours of h along F.

    Args:
        z: [T, F], any strides, F a multiple of 4.
        keep: bool [T, F], what a dropout lets through; None: everything.
        activation: "relu2" or "relu".
        scale: s, positive; of a dropout, or what h is multiplied by otherwise.

    Returns:
        values and metadata of the operand [T, F] in z's dtype; counts, fp32 (fp64 for fp64) [T/64, F/64, 5], of each
        block of 64 x 64: elements, those of h that are not 0, groups of four that have more than two of them, the sum
        of what was dropped, the sum of h.
    """
    h = hidden_state(z, keep, activation, scale)
    codes = code_table(h.device, PAIR_CODES)[magnitude_patterns(h).int()]
    values, metadata = write(gather_kept(h, codes), codes, h.shape[1], h.dtype, format)
    return values, metadata, _counts(h)


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
    """dz on p's own places, and what the weight gradients multiply by, from one read of dp [T, F] and of p.

    Args:
        dp: any strides.
        p: as `activation_pack` returns it.
        seed: of both estimates, whose errors are therefore not independent; each is unbiased.
        estimate_dz: also MVUE(dz^T). estimate_p: also MVUE(p^T). sums: also the column sums of dz (a bias gradient).

    Returns:
        values of dz [T, F], with the metadata of p; values and metadata of mvue(dz^T), and of mvue(p^T) [F, T], as
        `mvue_pack` gives them at this seed; sums, fp32 (fp64 for fp64) [F]. What was not asked for is empty.
    """
    (tokens, hidden), form = p.shape, FORMATS[p.format]
    codes = form.decode(p.metadata, tokens, hidden, p.dtype)
    kept, value = widen(gather_kept(dp, codes)), widen(p.values)
    # The places of zeros, and of NaN, are those of torch's own derivative of relu.
    if activation == "relu2":
        square = value * scale
        gradient = (kept * (2.0 * square.sqrt())).masked_fill(square < TINY, 0.0).to(p.dtype)
    else:
        gradient = (kept * scale).masked_fill(value <= 0, 0.0).to(p.dtype)
    dz = form.empty(tokens, hidden, p.dtype, dp.device)[0].copy_(gradient)
    dense = _spread(gradient, codes)
    nothing = dense.new_empty((0,)), p.metadata.new_empty((0,)), dense.new_empty((0,)), p.metadata.new_empty((0,))
    of_dz = mvue_pack(dense, seed, p.dtype, form.transposed) if estimate_dz else nothing[:2]
    of_p = mvue_pack(_spread(p.values, codes), seed, p.dtype, form.transposed) if estimate_p else nothing[2:]
    return dz, *of_dz, *of_p, column_sums(dense if sums else dense[:, :0])


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
    """(y, values, metadata, counts): y [..., D] = p down^T + down_bias, with p of z = x up^T + up_bias.

    The contract in `ops/activation_layer.py` says what the arguments are; it calls the best kernel for each step.
    """
    z = up_projection(x, up_cast, up_bias, up_layout)
    flat = None if keep is None else keep.reshape(z.shape)
    values, metadata, counts = activation_pack(z, flat, activation, scale, format)
    p = Packed24(values, metadata, (z.shape[0], z.shape[1]), z.dtype, format)
    y = mm(p, turned(down_cast, down_layout), None, "row", x.dtype)
    y = y if down_bias is None else y + down_bias.to(y.dtype)
    return y.reshape(*x.shape[:-1], y.shape[1]), values, metadata, counts


def up_projection(x: Tensor, weight: Tensor | None, bias: Tensor | None, layout: str) -> Tensor:
    """z [T, F] = x weight^T + bias, rounded to x's dtype; x [..., F] itself where there is no weight."""
    z = x.reshape(-1, x.shape[-1])
    if weight is None:
        return z
    columns = turned(weight, layout)
    return torch.mm(z, columns) if bias is None else torch.addmm(bias.to(z.dtype), z, columns)


def turned(weight: Tensor, layout: str) -> Tensor:
    """A weight as the right operand of a product, [in, out]."""
    return weight.t() if layout == "out_in" else weight


def _spread(kept: Tensor, codes: Tensor) -> Tensor:
    """Kept elements [T, F/2] on their places: dense [T, F]."""
    dense = kept.new_zeros((*codes.shape, 4))
    return dense.scatter_(2, places_of(codes), kept.unflatten(1, (-1, 2))).flatten(1)


def _counts(h: Tensor) -> Tensor:
    everything, nonzero = torch.ones_like(h), h != 0
    over = nonzero.unflatten(1, (-1, 4)).sum(2) > 2
    dropped = widen(h).masked_fill(magnitude_mask(h), 0.0)
    counted = (everything, BLOCK), (nonzero, BLOCK), (over, BLOCK // 4), (dropped, BLOCK), (h, BLOCK)
    return torch.stack([_by_block(x.to(dropped.dtype), columns) for x, columns in counted], dim=-1)


def _by_block(x: Tensor, columns: int) -> Tensor:
    """Sums of blocks of BLOCK rows and so many columns."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % columns, 0, -x.shape[0] % BLOCK))
    return padded.unflatten(1, (-1, columns)).unflatten(0, (-1, BLOCK)).sum((1, 3))
