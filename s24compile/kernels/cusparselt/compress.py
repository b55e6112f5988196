"""Packing into the library's own format: through its compressor, from a dense 2:4 matrix.

What is kept, and of what value, is decided by whichever kernel packs the format of the machine: its result is made
dense and compressed. So masks, MVUE draws, patterns and scales are the same as everywhere; it costs two more passes
over memory beside a compressor that reaches 3% of the bandwidth (2.2 ms for 8192 x 8192 on an H100).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s24compile.errors import TargetError
from s24compile.kernels import providers
from s24compile.kernels.cusparselt.product import NAME, SPARSE
from s24compile.kernels.format import FORMATS
from s24compile.kernels.padding import dense_operand, round_up
from s24compile.kernels.target import Target
from s24compile.torch_internals.products import cslt_compress


def hardware_format(device: torch.device) -> str:
    """The format that other kernels pack what is compressed then."""
    return Target.detect(device).arch.format


def refuse(dtype: torch.dtype, format: str) -> str | None:
    """A sentence unless values of `dtype` are wanted in cuSPARSELt's format."""
    if format != NAME:
        return f"it writes the cusparselt format, not {format}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it packs bf16 and fp16, not {str(dtype).removeprefix('torch.')}"
    return None


def as_dense(op: str, m: int, k: int, *args: Any) -> Tensor:
    """Runs an op that packs [m, k] on the best kernel there is, and gives the matrix that it packed."""
    format = hardware_format(args[0].device)
    with providers.only(None):
        values, metadata = providers.run(op, *args, format)
        return providers.run("unpack", values, metadata, m, k, format)


def compress(w: Tensor) -> tuple[Tensor, Tensor]:
    """(values, metadata) of a dense 2:4 matrix."""
    values, metadata = FORMATS[NAME].empty(w.shape[0], w.shape[1], w.dtype, w.device)
    compress_into(values, w)
    return values, metadata


def compress_into(values: Tensor, w: Tensor) -> None:
    """Fills the buffer of a dense 2:4 [m, k] in place.

    Raises:
        TargetError: this version of the library needs a larger one.
    """
    if not w.numel():
        return
    m, k = (round_up(size, SPARSE) for size in w.shape)
    compressed = cslt_compress(dense_operand(w.contiguous(), m, k))
    if compressed.numel() > values.numel():
        raise TargetError(
            what=f"cuSPARSELt's format for {tuple(w.shape)}",
            target=str(w.device),
            found=f"this version of it takes {compressed.numel()} elements, and {values.numel()} are set aside",
            accepted="install nvcc and CUTLASS's headers instead, and report this as a bug of OpaqueFormat",
        )
    values.view(-1)[: compressed.numel()].copy_(compressed.view(-1))
