"""The layout "sparse-24-bitmask" of the compressed-tensors library: three tensors for one 2:4 matrix.

Legend: [m, k] the dense matrix. Beside a module ``a.b`` with a weight, files hold::

    a.b.shape       int64 [2, 1]        m and k
    a.b.compressed  [m, k/2]            the two kept elements of each four, in order
    a.b.bitmask     uint8 [m, k/8]      bit c of byte b is column 8 b + c: 1 where it is kept (rounded up for k % 8)

A byte is two groups: the lower one in its low four bits. No scale belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from s24compile.errors import DtypeError, MaskError, ShapeError
from s24compile.kernels.checks import device_format, outside_inference_mode
from s24compile.kernels.format import FORMATS, code_table
from s24compile.kernels.patterns import PAIR_CODES
from s24compile.tensor.sparse24 import Sparse24

FIELDS = ("shape", "compressed", "bitmask")
"""What the three tensors are called, after the module's name."""

_CODES = set(PAIR_CODES)
_BITS_OF_CODE = tuple((1 << (c & 3) | 1 << (c >> 2)) if c in _CODES else 0 for c in range(16))
_CODE_OF_BITS = tuple(_BITS_OF_CODE.index(bits) if bits in _BITS_OF_CODE and bits else 0 for bits in range(16))


def to_bitmask(s: Sparse24) -> dict[str, Tensor]:
    """The three tensors of a Sparse24, by the names in `FIELDS`, contiguous and on its device.

    Raises:
        ShapeError: s is a transposed view.
        DtypeError: s has a scale, which this layout cannot hold.
    """
    if s.transposed:
        raise ShapeError(what="s", shape=tuple(s.shape), accepted="it is a transposed view: pass s.t()")
    if s.scale is not None:
        raise DtypeError(what="s", dtype=s.dtype, accepted="it has a scale, which the layout has not: s.to(16 bits)")
    (m, k), table = s.packed_shape, code_table(s.device, _BITS_OF_CODE)
    bits = table[FORMATS[s.format].decode(s.metadata, m, k, s.dtype).int()]
    bits = torch.nn.functional.pad(bits, (0, bits.shape[1] % 2))
    return {
        "shape": torch.tensor([[m], [k]], device=s.device),
        "compressed": s.kept.detach().contiguous(),
        "bitmask": bits[:, 0::2] | bits[:, 1::2] << 4,
    }


def from_bitmask(tensors: Mapping[str, Tensor]) -> Sparse24:
    """The Sparse24 of three such tensors, in the format of their device.

    Raises:
        ShapeError: they do not fit one another.
        MaskError: a group of the bitmask has other than two ones.
    """
    shape, kept, bitmask = (tensors[field] for field in FIELDS)
    m, k = (int(size) for size in shape.flatten())
    expected = {"compressed": (m, k // 2), "bitmask": (m, (k + 7) // 8)}
    for field, size in expected.items():
        if k % 4 or tuple(tensors[field].shape) != size:
            raise ShapeError(
                what=field, shape=tuple(tensors[field].shape), accepted=f"for a matrix [{m}, {k}] it is {list(size)}"
            )
    bits = torch.stack((bitmask & 15, bitmask >> 4), dim=-1).flatten(1)[:, : k // 4]
    codes = code_table(bits.device, _CODE_OF_BITS)[bits.int()]
    if bool((codes == 0).any()):
        raise MaskError(
            what="the bitmask",
            found="a group of four has not exactly two ones",
            accepted="use the compressor of compressed-tensors, or s24compile.export.to_bitmask",
        )
    with outside_inference_mode(), torch.no_grad():
        format = device_format(kept.device)
        values, metadata = FORMATS[format].empty(m, k, kept.dtype, kept.device)
        values.copy_(kept)
        metadata.copy_(FORMATS[format].encode(codes, kept.dtype))
        return Sparse24(values, metadata, None, (m, k), format=format)
