"""Matrix products with a `Sparse24`. All are cases of one: C = S B + bias, with S = A or S = A^T.

Legend: A [m, k] packed, S [p, q] the view of it that multiplies, B [q, n] dense, C [p, n].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s24compile import ops
from s24compile.errors import DtypeError, ShapeError
from s24compile.kernels import ops as _ops

if TYPE_CHECKING:
    from s24compile.tensor.sparse24 import Sparse24


def left(s: Sparse24, b: Tensor, *, bias: Tensor | None = None, layout: str = "row", exact: bool = False) -> Tensor:
    """C = S B + bias.

    Args:
        b: [q, n], any strides, S's dtype (any 8-bit float beside fp8).
        bias: [p], one value per row of C.
        layout: "row" for strides (n, 1) of C, "col" for (1, p).
        exact: give the sums as they were accumulated (fp32; fp64 for int8 and fp64), for more arithmetic.

    Raises:
        ShapeError, DtypeError
    """
    _check(s, b)
    given, wide = result_dtype(s, bias), accumulator(s)
    if s.scale is None and s.dtype != torch.int8 and not s.transposed:
        return ops.mm(s.packed, b, bias=bias, out_layout=layout, out_dtype=wide if exact else given)  # type: ignore[arg-type]
    more = exact or bias is not None or s.dtype.itemsize == 1  # rounded by what comes after, not before
    c = _sums(s, b, layout, wide if more else given)
    if s.scale is not None:
        c = c * s.scale.to(wide)
    if bias is not None:
        c = c + bias.to(wide)[:, None]
    return c if exact else c.to(given)


def right(x: Tensor, s: Sparse24, *, bias: Tensor | None = None, exact: bool = False) -> Tensor:
    """X S + bias, row-major: x [n, p] times S [p, q]; bias [q], one value per column."""
    return left(s.flipped(), x.t(), bias=bias, layout="col", exact=exact).t()


def accumulator(s: Sparse24) -> torch.dtype:
    """What sums are held in. fp64 for int8: fp32 is exact only up to 2**24."""
    return torch.float64 if s.dtype in (torch.int8, torch.float64) else torch.float32


def result_dtype(s: Sparse24, addend: Tensor | None = None) -> torch.dtype:
    """The dtype of a product: S's own; of 8-bit values fp32, or int32 where all there is are integers."""
    if s.dtype.itemsize > 1:
        return s.dtype
    integers = s.dtype == torch.int8 and s.scale is None and (addend is None or not addend.is_floating_point())
    return torch.int32 if integers else torch.float32


def _sums(s: Sparse24, b: Tensor, layout: str, dtype: torch.dtype) -> Tensor:
    """S B of the kept values as they are, without the scale. `dtype` is the accumulator's, or S's own."""
    if not s.transposed:
        return ops.mm(s.packed, b, out_layout=layout, out_dtype=dtype)  # type: ignore[arg-type]
    # A^T has its groups of four along the output, where no sparse kernel can use them: a dense product instead.
    a = _ops.unpack(s.kept, s.metadata, *s.packed_shape, s.format)
    return _dense(a.t(), b, dtype) if layout == "row" else _dense(b.t(), a, dtype).t()


def _dense(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a b of dense matrices, summed and rounded once to `dtype`, no narrower than theirs."""
    if a.dtype == dtype:
        return torch.mm(a, b)
    if a.is_cuda and a.dtype.itemsize == 2:
        return torch.mm(a, b, out_dtype=dtype)  # CUDA only: tensor cores hand out their fp32 sums
    return torch.mm(a.to(dtype), b.to(dtype))


def _check(s: Sparse24, b: Tensor) -> None:
    p, q = s.shape
    if b.dim() != 2 or b.shape[0] != q:
        raise ShapeError(
            what="the dense operand", shape=tuple(b.shape), accepted=f"beside a Sparse24 [{p}, {q}] it must be [{q}, n]"
        )
    floats = s.dtype.itemsize == b.dtype.itemsize == 1 and s.is_floating_point() and b.is_floating_point()
    if b.dtype != s.dtype and not floats:
        raise DtypeError(
            what="the dense operand",
            dtype=b.dtype,
            accepted=f"it must be the Sparse24's, {s.dtype}; call .to() on either",
        )
