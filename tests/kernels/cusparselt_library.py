"""A stand-in for cuSPARSELt on a CPU: torch's three calls, with their rules asserted and a format of its own.

On a machine with the library the tests use it. This one is as strict as torch's C++ is where that is silent: sizes,
gaps between rows and the buffer's length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels.pack import reference
from s24compile.kernels.packed import Packed24

ALGORITHMS = 4


def compress(sparse_input: Tensor) -> Tensor:
    """`torch._cslt_compress`: kept values, then codes, in one buffer of m rows."""
    m, k = sparse_input.shape
    assert sparse_input.dtype in (torch.bfloat16, torch.float16)
    assert sparse_input.is_contiguous(), "the library is given k as the pitch"
    assert (m % 16, k % 16) == (0, 0)
    values, codes = reference.pack(sparse_input, None, sparse_input.dtype, "sm80")  # raises unless it is 2:4
    whole = torch.cat([values.reshape(-1), codes.reshape(-1).view(sparse_input.dtype)])
    columns = -(-whole.numel() // m)
    return torch.nn.functional.pad(whole, (0, m * columns - whole.numel())).view(m, columns)


def sparse_mm(
    compressed_a: Tensor,
    dense_b: Tensor,
    bias: Tensor | None = None,
    transpose_result: bool = False,
    alg_id: int = 0,
) -> Tensor:
    """`torch._cslt_sparse_mm`."""
    if alg_id >= ALGORITHMS:
        raise RuntimeError("CUDA error: invalid value when calling cusparseLtMatmulAlgSetAttribute")
    m, (k, n), dtype = compressed_a.shape[0], dense_b.shape, dense_b.dtype
    assert compressed_a.dim() == 2
    assert compressed_a.dtype == dtype
    assert (m % 16, k % 16, n % 8) == (0, 0, 0)
    assert dense_b.is_contiguous() or dense_b.t().is_contiguous(), "torch takes all else for a transpose without gaps"
    assert dense_b.data_ptr() % 16 == 0
    kept, codes = m * k // 2, -(-m // 32) * 32 * (-(-k // 32) * 32) // 16
    whole = compressed_a.as_strided((kept + codes,), (1,))
    metadata = whole[kept:].view(torch.int16).view(-(-m // 32) * 32, -1)
    dense = reference.unpack(Packed24.of(whole[:kept].view(m, k // 2), metadata, m, k, "sm80"))
    c = dense.float() @ dense_b.float()
    if bias is not None:
        assert bias.shape == (m,)
        assert bias.dtype == dtype
        c = c + bias.float()[:, None]
    c = c.to(dtype)
    return c.t().contiguous() if transpose_result else c
