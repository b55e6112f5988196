"""torch.sparse's own semi-structured tensors, for inference with torch alone.

Legend: [m, k] a weight, groups of four along k. torch has two kinds: "cutlass" (values and metadata apart, in the bits
of our format "sm80"; torch multiplies with them on compute capability 8.x only) and "cusparselt" (one opaque tensor,
made and used on the GPU; the one for Hopper).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from s24compile.errors import DtypeError, ModelError, ShapeError, TargetError
from s24compile.export.baked import baked_weights
from s24compile.kernels import ops as _ops
from s24compile.kernels.checks import check_choice, check_same_shape
from s24compile.tensor.sparse24 import Sparse24
from s24compile.wrappers import clean_name, unwrapped

Backend = Literal["cutlass", "cusparselt"]

_CLASSES: dict[str, Any] = {
    "cutlass": SparseSemiStructuredTensorCUTLASS,
    "cusparselt": SparseSemiStructuredTensorCUSPARSELT,
}


def to_torch_sparse(t: Tensor, mask: Tensor | None = None, *, backend: Backend = "cutlass") -> Tensor:
    """A torch.sparse.SparseSemiStructuredTensor of t, with our choice of what is kept.

    "cutlass" tensors can be made, saved and made dense on any device; products need a GPU that torch supports.

    Args:
        t: [m, k], a dense tensor or a Sparse24 (not transposed, without a scale); fp16, bf16 or int8.
        mask: [m, k], at most two ones per group. None: t must be 2:4 already.

    Raises:
        MaskError: t, or the mask, is not 2:4.
        ShapeError, DtypeError: torch's kernels don't take it (m and k are multiples of 32 and 64; int8 16 and 128).
        TargetError: "cusparselt" for a tensor that is not on a GPU.
    """
    check_choice("backend", backend, tuple(_CLASSES))
    if isinstance(t, Sparse24):
        if t.transposed or t.scale is not None:
            raise ShapeError(
                what="t", shape=tuple(t.shape), accepted="it is a transposed view or has a scale: use .t() and .to()"
            )
        t = t.to_dense()
    t, cls = t.detach(), _CLASSES[backend]
    _check_taken(t, cls)
    if mask is not None:
        check_same_shape("mask", mask, "t", t)
        mask = mask.bool()
    if backend == "cusparselt" and t.device.type != "cuda":
        raise TargetError(
            what="a cuSPARSELt tensor",
            target=str(t.device),
            found="only the GPU's library can make it",
            accepted="move the tensor to the GPU first, or choose backend='cutlass'",
        )
    wide = t.float() if t.dtype == torch.int8 else t
    values, metadata = _ops.pack(wide, mask, t.dtype, "sm80")
    if backend == "cusparselt":
        return cls.from_dense(_ops.unpack(values, metadata, *t.shape, "sm80"))
    return cls(t.shape, packed=values, meta=metadata, packed_t=None, meta_t=None, compressed_swizzled_bitmask=None)


def to_torch_sparse_(model: nn.Module, *, backend: Backend = "cutlass", dtype: torch.dtype | None = None) -> list[str]:
    """Replaces the sparse weights of a trained model's nn.Linear layers by such tensors, for inference without s24.

    All of them or none. They need no gradient; the rest of the model stays as it is.

    Args:
        dtype: cast the converted weights to it (inputs must then have it too); None keeps each parameter's.

    Returns:
        The names of the converted parameters.

    Raises:
        ModelError: a sparse weight is not the weight of an nn.Linear, or torch's kernels don't take it; or
            `baked_weights` cannot tell them.
    """
    # By the names that weights have; of a compiled module and the one in it, which share a name, the one in it.
    modules: dict[str, Any] = {clean_name(name): module for name, module in unwrapped(model).named_modules()}
    converted: dict[str, Tensor] = {}
    for name, weight in baked_weights(model).items():
        owner, _, attribute = name.rpartition(".")
        try:
            if attribute != "weight" or not isinstance(modules.get(owner), nn.Linear):
                raise ModelError(
                    what=f"weight {name!r}", found="its module is no nn.Linear", accepted="export it as it is"
                )
            converted[name] = to_torch_sparse(weight if dtype is None else weight.to(dtype), backend=backend)
        except (ShapeError, DtypeError) as error:
            raise ModelError(
                what=f"weight {name!r}", found=str(error), accepted="no weight has been converted"
            ) from error
    for name, tensor in converted.items():
        modules[name.removesuffix(".weight")].weight = nn.Parameter(tensor, requires_grad=False)
    return list(converted)


def _check_taken(t: Tensor, cls: Any) -> None:
    """Refuses what torch's constraints on the class exclude; fp32 too, whose tensors torch packs as 1:2 TF32."""
    sizes = cls._DTYPE_SHAPE_CONSTRAINTS
    accepted = [dtype for dtype in sizes if dtype.itemsize < 4]
    if t.dtype not in accepted:
        raise DtypeError(what="t", dtype=t.dtype, accepted=f"torch's 2:4 kernels take {accepted}; cast it first")
    rows, cols = sizes[t.dtype].sparse_min_rows, sizes[t.dtype].sparse_min_cols
    if t.dim() != 2 or t.shape[0] % rows or t.shape[1] % cols or not t.numel():
        raise ShapeError(
            what="t", shape=tuple(t.shape), accepted=f"torch's 2:4 kernels take multiples of {rows} x {cols} here"
        )
