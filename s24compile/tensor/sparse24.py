"""The class `Sparse24`: a wrapper around the tensors of a `Packed24`.

Legend: A [m, k] the packed matrix, groups of four along k. A Sparse24 is A, or A^T as a view ("transposed").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s24compile.errors import ShapeError
from s24compile.kernels import ops as _ops
from s24compile.kernels.checks import check_packable, device_format, outside_inference_mode
from s24compile.kernels.format import FORMATS
from s24compile.kernels.packed import Packed24
from s24compile.tensor import dispatch
from s24compile.tensor.saved import rebuild_sparse24
from s24compile.tensor.scaling import dequantised, recast
from s24compile.torch_internals.tensors import DisableTorchFunctionSubclass, make_wrapper_subclass


class Sparse24(Tensor):
    """A 2:4 matrix that is a tensor: `s24compile.to_sparse_semi_structured` makes one.

    Its dtype is that of its packed values; 8-bit values made from a wider tensor carry one fp32 `scale`.

    ========================================  =====================================================================
    mm, matmul, mv; addmm; F.linear           sparse kernels for ``A @ b``, ``x @ A.t()``, ``F.linear(x, A, bias)``;
                                              ``x @ A`` and ``A.t() @ b``, where groups of four lie along the output,
                                              unpack A and multiply dense. Differentiable in the dense operands.
    t, detach, clone, to, copy_               as for any tensor; `to` re-packs where dtype or device ask for it
    to_dense, values, indices, packed         the dense matrix; kept values; metadata; all of it as a `Packed24`
    torch.save, torch.load(weights_only=True) after ``import s24compile``
    torch.compile, FakeTensorMode             taken apart into plain tensors
    ========================================  =====================================================================

    The dense operand has A's dtype (any 8-bit float beside fp8). Results: A's dtype for 16 bits and wider; fp32 for
    fp8 and scaled int8; int32, exact, for int8 without a scale.
    """

    kept: Tensor
    """Kept values [m, k/2]; where `scale` is set, dense = kept * scale."""
    metadata: Tensor
    scale: Tensor | None
    """0-d fp32, or None: the values are what they are."""
    format: str
    transposed: bool
    origin: torch.dtype
    """What `to_dense` of a scaled tensor gives: the dtype that it was made from."""

    @staticmethod
    def __new__(
        cls: type[Sparse24],
        kept: Tensor,
        metadata: Tensor,
        scale: Tensor | None,
        shape: tuple[int, int],
        *,
        format: str,
        transposed: bool = False,
        origin: torch.dtype | None = None,
    ) -> Sparse24:
        """Wraps packed tensors. `shape` is that of the result: [k, m] where it is transposed."""
        strides = (1, shape[0]) if transposed else (shape[1], 1)
        # Under inference_mode torch could not make an inference tensor a view of one that was made outside.
        with outside_inference_mode():
            self = make_wrapper_subclass(cls, shape, strides=strides, dtype=kept.dtype, device=kept.device)
        self.kept, self.metadata, self.scale = kept, metadata, scale
        self.format, self.transposed, self.origin = format, transposed, origin or kept.dtype
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with DisableTorchFunctionSubclass():
            return dispatch.call_function(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return dispatch.call(cls, func, args, kwargs or {})

    # torch's own methods turn a TypeError, and with it a DtypeError's sentence, into "unsupported operand type(s)".
    def __matmul__(self, other: Any) -> Tensor:
        return torch.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return torch.matmul(other, self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        scale = "" if self.scale is None else ", scaled"
        view = ", transposed" if self.transposed else ""
        where = f"{self.dtype}, device='{self.device}', format={self.format!r}"
        return f"Sparse24({list(self.shape)}, {where}{scale}{view})"

    def __tensor_flatten__(self) -> tuple[list[str], tuple[str, bool, torch.dtype]]:
        inner = ["kept", "metadata"] + (["scale"] if self.scale is not None else [])
        return inner, (self.format, self.transposed, self.origin)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: Any, outer_size: Any, outer_stride: Any) -> Sparse24:
        format, transposed, origin = meta
        return Sparse24(
            inner["kept"],
            inner["metadata"],
            inner.get("scale"),
            tuple(outer_size),  # type: ignore[arg-type]
            format=format,
            transposed=transposed,
            origin=origin,
        )

    def _stable_hash_for_caching(self) -> str:
        """What compiled code may depend on, for AOTAutograd's cache."""
        tensors = [(t.shape, t.stride(), t.dtype) for t in (self.kept, self.metadata)]
        return repr((self, self.origin, self.requires_grad, self.stride(), tensors))

    def __reduce_ex__(self, protocol: Any) -> Any:
        meta = (tuple(self.shape), self.format, self.transposed, self.origin)
        return rebuild_sparse24, (self.kept, self.metadata, self.scale, meta)

    @property
    def packed_shape(self) -> tuple[int, int]:
        """(m, k) of the packed matrix A, whichever way this view of it lies."""
        rows, cols = self.shape
        return (cols, rows) if self.transposed else (rows, cols)

    @property
    def packed(self) -> Packed24:
        """A as `s24compile.ops` takes it (without the scale, and not transposed)."""
        return Packed24(self.kept, self.metadata, self.packed_shape, self.dtype, self.format)

    def values(self) -> Tensor:
        """The kept values [m, k/2], without the scale."""
        return self.kept

    def indices(self) -> Tensor:
        """The positions of the kept values, in the bits of `format`."""
        return self.metadata

    def to_dense(self, dtype: torch.dtype | None = None, *, masked_grad: bool | None = None) -> Tensor:
        """The dense matrix, contiguous, with the scale applied.

        Args:
            dtype: None for this tensor's, or, where it has a scale, for that of the tensor it was made from.
            masked_grad: of no meaning here (no gradient passes); torch's signature has it.
        """
        with outside_inference_mode(), torch.no_grad():
            dense = _ops.unpack(self.kept, self.metadata, *self.packed_shape, self.format)
            if self.scale is not None:
                dense = dequantised(dense, self.scale).to(self.origin)
            dense = dense if dtype is None else dense.to(dtype)
            return dense.t().contiguous() if self.transposed else dense

    def with_tensors(self, kept: Tensor, metadata: Tensor, scale: Tensor | None, format: str | None = None) -> Sparse24:
        """A tensor of the same shape and orientation around other packed tensors."""
        return type(self)(
            kept,
            metadata,
            scale,
            (self.shape[0], self.shape[1]),
            format=format or self.format,
            transposed=self.transposed,
            origin=self.origin if scale is not None else None,
        )

    def alias(self) -> Sparse24:
        """The same packed tensors in a new wrapper."""
        return self.with_tensors(self.kept, self.metadata, self.scale)

    def flipped(self) -> Sparse24:
        """The transposed view; nothing is copied."""
        return type(self)(
            self.kept,
            self.metadata,
            self.scale,
            (self.shape[1], self.shape[0]),
            format=self.format,
            transposed=not self.transposed,
            origin=self.origin,
        )

    def copied(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Sparse24:
        """A copy, with values of another dtype or on another device; metadata is translated where the bits differ.

        8-bit values are scaled anew from the values they stood for; wider ones stand for themselves.
        """
        dtype, device = dtype or self.dtype, torch.device(device or self.device)
        check_packable(dtype)
        with outside_inference_mode(), torch.no_grad():
            (m, k), format = self.packed_shape, self.format if device.type == "meta" else device_format(device)
            kept, scale = self.kept.to(device), None if self.scale is None else self.scale.to(device, copy=True)
            if dtype != self.dtype:
                kept, scale = recast(kept, scale, dtype)
            values, metadata = FORMATS[format].empty(m, k, dtype, device)  # a clone() would lose the padded row pitch
            values.copy_(kept)
            old, new = FORMATS[self.format].layout(self.dtype), FORMATS[format].layout(dtype)
            source = self.metadata.to(device)
            metadata.copy_(source if old == new else new.store(old.load(source, m, k // 4)))
            return self.with_tensors(values, metadata, scale, format)

    def overwrite(self, source: Tensor) -> Sparse24:
        """`copy_`: takes over the contents of another Sparse24 of the same shape, in place.

        Raises:
            ShapeError: another shape or orientation, a dense tensor, or only one of the two has a scale.
        """
        converted = None
        if isinstance(source, Sparse24) and source.shape == self.shape and source.transposed == self.transposed:
            converted = source.copied(self.dtype, self.device)
        if converted is None or (converted.scale is None) != (self.scale is None):
            raise ShapeError(
                what="the source of copy_",
                shape=tuple(source.shape),
                accepted=f"it must be a Sparse24 like {self!r}; see s24compile.to_sparse_semi_structured",
            )
        self.kept.copy_(converted.kept)
        self.metadata.copy_(converted.metadata)
        if self.scale is not None and converted.scale is not None:
            self.scale.copy_(converted.scale)
        return self
