"""The provider "torch" of `s24::mm`: torch's own 2:4 GEMM for Ampere and Ada, which reads our "sm80" format.

Legend: A [m, k] sparse, B [k, n] dense, C [m, n].

What torch's ops do (aten/src/ATen/native/sparse/cuda/SparseSemiStructuredOps.cu; one CUTLASS kernel behind all):

* B may be row- or column-major, so a row-major X [n, k] is read as it lies. C is always written row-major:
  `_sparse_semi_structured_linear` only returns it as a view. Out layout "row" costs nothing, "col" a transposing copy
  of C, by whichever op.
* `_addmm` adds a bias of one value per row of C before C is rounded.
* C is of B's dtype. (`out_dtype` is for int8; with 16 bits it would be the dtype of a buffer that the kernel fills with
  16-bit numbers.) Where fp32 is asked for, C is widened, which rounds weight gradients as torch.autocast does.
* m must be a multiple of 32 and the leading dimension of the metadata; k of 64, the kernel's tile, because codes read
  beyond the end would be 0, which is no code; n of 8. What does not fit is padded here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.gemm.dtypes import refuse_dtypes
from s24compile.kernels.metadata import PADDING_CODE
from s24compile.kernels.packed import Packed24
from s24compile.kernels.padding import bias_vector, dense_operand, empty_result, result, round_up
from s24compile.kernels.providers import Provider
from s24compile.torch_internals.products import semi_structured_addmm, semi_structured_mm

ROWS, DEPTH, COLUMNS = 32, 64, 8
"""What m, k and n must be multiples of."""
PADDING_CELL = PADDING_CODE * 0x1111
"""Four codes of padding in one int16 of metadata."""


def supports(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> str | None:
    """16-bit operands in the "sm80" format. Any shape and strides."""
    if a.format != "sm80":
        return f"it reads the sm80 format, not {a.format}"
    return refuse_dtypes(a, b, bias, out_dtype)


def mm(a: Packed24, b: Tensor, bias: Tensor | None, out_layout: str, out_dtype: torch.dtype) -> Tensor:
    """`s24::mm` on torch's kernel."""
    (rows, cols), n = a.shape, b.shape[1]
    if min(rows, cols, n) == 0:
        return empty_result(b, bias, rows, out_layout, out_dtype)
    m, k = round_up(rows, ROWS), round_up(cols, DEPTH)
    operand = sparse_operand(a.values, a.metadata, m, k)
    c = multiply(*operand, dense_operand(b, k, round_up(n, COLUMNS)), bias_vector(bias, m, b.dtype))
    return result(c, rows, n, out_layout, out_dtype)


def sparse_operand(values: Tensor, metadata: Tensor, m: int, k: int) -> tuple[Tensor, Tensor]:
    """(values, metadata) of A with zeros up to [m, k], multiples of 32 and 64; themselves where A is that large."""
    if values.shape != (m, k // 2):
        padded = values.new_zeros((m, k // 2))
        kept = values[:, : k // 2]  # its padding may be wider
        padded[: kept.shape[0], : kept.shape[1]].copy_(kept)
        values = padded
    cells = m * k // 16
    if metadata.numel() != cells:
        # Rows are padded to 32 already, and columns of cells run slowest: what is missing is missing at the end.
        longer = metadata.new_full((cells,), PADDING_CELL)
        longer[: metadata.numel()].copy_(metadata.flatten())
        metadata = longer.view(m, k // 16)
    return values, metadata


def multiply(values: Tensor, metadata: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """C [m, n], row-major, in B's dtype, of operands that fit."""
    if bias is None:
        return semi_structured_mm(values, metadata, b)
    return semi_structured_addmm(bias, values, metadata, b)


PROVIDERS = {"mm": Provider("torch", mm, supports)}
"""Op name to provider: what `kernels.providers.find` reads."""
