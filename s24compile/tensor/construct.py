"""`to_sparse_semi_structured`: prunes a dense matrix to 2:4 and packs it.

Legend: t [m, k] with groups of four along k.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile import ops
from s24compile.errors import DtypeError, OptionError
from s24compile.kernels.checks import (
    PACKABLE,
    check_matrix,
    check_multiple,
    check_packable,
    check_same_shape,
    check_tensor,
    outside_inference_mode,
)
from s24compile.tensor.scaling import divided, scale_for
from s24compile.tensor.sparse24 import Sparse24


def to_sparse_semi_structured(
    t: Tensor, mask: Tensor | None = None, mvue: bool = False, dtype: torch.dtype | None = None
) -> Sparse24:
    """Prunes each four neighbours of a row to two and packs them: a `Sparse24`, which multiplies as a tensor does.

    The gradient stops here: the result is a copy of t's values, as in the toolkit.

    Args:
        t: [m, k], k a multiple of 4, any strides; fp64 (CPU), fp32, bf16, fp16, fp8 (e4m3fn, e5m2) or int8.
        mask: [m, k] of any dtype, non-zero where t is kept; at most two per group. None: the two largest magnitudes
            are kept, ties keep the lower index.
        mvue: keep an unbiased random estimate of t instead, of least variance; drawn from torch's generator.
        dtype: of the packed values, and of the result; None for t's. A wider t is brought to int8 or fp8 by one scale
            per tensor (`Sparse24.scale`), from the largest magnitude that is kept; products and `to_dense` undo it.

    Raises:
        MaskError: more than two ones in a group (on CUDA two of them are kept: asking would be a host sync).
        ArgumentError, ShapeError, DtypeError: what no 2:4 format takes.
        OptionError: both a mask and mvue.
    """
    check_tensor("t", t)
    check_packable(dtype)
    if t.dtype not in PACKABLE:
        raise DtypeError(what="t", dtype=t.dtype, accepted=f"a 2:4 tensor may be {PACKABLE}")
    if mvue and mask is not None:
        raise OptionError(
            name="mvue", value=mvue, accepted="it chooses what is kept itself; pass it or a mask, not both"
        )
    with outside_inference_mode(), torch.no_grad():
        wide = t.detach().to(torch.float32) if t.dtype == torch.int8 else t.detach()
        check_matrix("t", wide)
        check_multiple("t", wide, (1,))
        dtype = dtype or t.dtype
        if mvue:
            wide = ops.mvue(wide)
            mask = wide != 0
        elif mask is None:
            mask = ops.magnitude_mask(wide)
        else:
            check_same_shape("mask", mask, "t", t)
            mask = mask.detach().bool()
        scale = None
        if dtype.itemsize == 1 and t.dtype.itemsize > 1:
            scale = scale_for(torch.where(mask, wide, 0.0), dtype)
            wide = divided(wide, scale)
        packed = ops.pack(wide, mask, dtype=dtype)
        return Sparse24(packed.values, packed.metadata, scale, packed.shape, format=packed.format, origin=t.dtype)
