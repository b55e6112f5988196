"""Products and streams of CUDA that torch has and does not document."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from s24compile.torch_internals.part import Part, part_of

PARTS = (
    Part("torch._C._cuda_getCurrentRawStream", "no kernel of this package is launched on CUDA", on_cuda=True),
    Part("torch._scaled_mm", "dense products of 8 bits have no cuBLASLt"),
    Part("torch._cslt_compress", "there is no provider 'cusparselt'"),
    Part("torch._cslt_sparse_mm", "the same"),
    Part("torch._cslt_sparse_mm_search", "the same"),
    Part("torch._sparse_semi_structured_mm", "there is no provider 'torch'"),
    Part("torch._sparse_semi_structured_addmm", "the same"),
)


SCALED_PRODUCTS = frozenset({"_scaled_mm", "scaled_mm", "_scaled_mm_v2"})
"""What torch's products of 8-bit floats are called in a graph."""


def _no_stream(device: int) -> int:
    return int(part_of(torch._C, "_cuda_getCurrentRawStream")(device))


raw_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", _no_stream)
"""(device index) -> the address of its current stream. At each launch, so it is looked up once."""


def scaled_mm(*args: Any, **kwargs: Any) -> Any:
    """A product of 8-bit floats by cuBLASLt."""
    return part_of(torch, "_scaled_mm")(*args, **kwargs)


def cslt_compress(*args: Any, **kwargs: Any) -> Any:
    """A dense 2:4 matrix -> what cuSPARSELt multiplies by."""
    return part_of(torch, "_cslt_compress")(*args, **kwargs)


def cslt_mm(*args: Any, **kwargs: Any) -> Any:
    """A product by cuSPARSELt."""
    return part_of(torch, "_cslt_sparse_mm")(*args, **kwargs)


def cslt_search(*args: Any, **kwargs: Any) -> Any:
    """The number of cuSPARSELt's fastest algorithm for such a product."""
    return part_of(torch, "_cslt_sparse_mm_search")(*args, **kwargs)


def semi_structured_mm(*args: Any, **kwargs: Any) -> Any:
    """A product by torch's CUTLASS 2:4 kernels (sm80)."""
    return part_of(torch, "_sparse_semi_structured_mm")(*args, **kwargs)


def semi_structured_addmm(*args: Any, **kwargs: Any) -> Any:
    """The same, with a bias."""
    return part_of(torch, "_sparse_semi_structured_addmm")(*args, **kwargs)
