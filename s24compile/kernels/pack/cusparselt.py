"""The providers "cusparselt" of packing.

Legend: w [m, k] with groups of four along k; n, k rows and columns of stacked weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s24compile.kernels import providers
from s24compile.kernels.cusparselt.compress import as_dense, compress, compress_into, hardware_format, refuse
from s24compile.kernels.cusparselt.product import NAME, multiply, supported
from s24compile.kernels.format import FORMATS
from s24compile.kernels.packed import Packed24
from s24compile.kernels.providers import Provider
from s24compile.kernels.stacks import Packing, Stack, Stacks

CHUNK = 4096
"""Columns of the identity that one product of `unpack` takes."""


def pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor]:
    """See pack/reference.py."""
    return compress(as_dense("pack", w.shape[0], w.shape[1], w, mask, dtype))


def unpack(a: Packed24) -> Tensor:
    """See pack/reference.py: a product with the identity, the only way to read it. A row with Inf or NaN is NaN."""
    (_, cols), values = a.shape, a.values
    dense = values.new_empty(a.shape)
    for start in range(0, cols, CHUNK):
        width = min(CHUNK, cols - start)
        columns = values.new_zeros((cols, width))
        columns.diagonal(-start).fill_(1.0)
        dense[:, start : start + width].copy_(multiply(a, columns, None, "row", values.dtype))
    return dense


def pack_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See pack/reference.py."""
    return *pack(w, mask, dtype, format), *pack(w.t(), mask.t(), dtype, format)


def pack_weight_(stack: Stack, scale: Tensor | None, packing: Packing) -> None:
    """See pack/reference.py."""
    along = 1 if packing.weight_layout == "out_in" else 0
    n, k = sum(w.shape[1 - along] for w in stack.weights), stack.weights[0].shape[along]
    values, values_t, format = stack.values, stack.values_t, hardware_format(stack.values.device)
    plain = FORMATS[format]
    packed = plain.empty(n, k, values.dtype, values.device)
    turned = None if values_t is None else plain.empty(k, n, values.dtype, values.device)
    own = Stack(stack.weights, stack.patterns, *packed, *(turned or (None, None)))
    with providers.only(None):
        providers.run("pack_weight_", *own, scale, *packing._replace(format=format))
        compress_into(values, providers.run("unpack", *packed, n, k, format))
        if values_t is not None and turned is not None:
            compress_into(values_t, providers.run("unpack", *turned, k, n, format))


def pack_weights_(stacks: Stacks, packing: Packing) -> None:
    """See pack/reference.py. The compressor takes one matrix a call, so one after the other."""
    for stack in stacks.each():
        pack_weight_(stack, None, packing)


def _supports_pack(w: Tensor, mask: Tensor | None, dtype: torch.dtype, format: str) -> str | None:
    return refuse(dtype, format)


def _supports_both(w: Tensor, mask: Tensor, dtype: torch.dtype, format: str) -> str | None:
    return refuse(dtype, format)


def _supports_unpack(a: Packed24) -> str | None:
    return refuse(a.dtype, a.format)


def _supports_weight(stack: Stack, scale: Tensor | None, packing: Packing) -> str | None:
    return refuse(stack.values.dtype, packing.format)


def _supports_weights(stacks: Stacks, packing: Packing) -> str | None:
    return refuse(stacks.values[0].dtype, packing.format)


PROVIDERS = {
    "pack": Provider(NAME, pack, _supports_pack, supported),
    "unpack": Provider(NAME, unpack, _supports_unpack, supported),
    "pack_both": Provider(NAME, pack_both, _supports_both, supported),
    "pack_weight_": Provider(NAME, pack_weight_, _supports_weight, supported),
    "pack_weights_": Provider(NAME, pack_weights_, _supports_weights, supported),
}
"""Op name to provider: what `kernels.providers.find` reads."""
