"""The 2:4 formats: where kept values lie in memory, and which metadata lies beside them. A leaf.

Legend: m rows, k columns of the dense matrix (k is the contraction dim); a *group* is four neighbours of a row;
k4 is k rounded up to a multiple of 4.

**Values.** [m, k4/2], the kept elements of each row in order. The row pitch is padded to 16 bytes (8 elements for
fp32 and fp64, which only the reference reads) so that TMA can load it; the logical shape has no padding.

**Metadata**: the codes of the groups, in the order of `metadata.py`. "sm90" is that of wgmma.sp, "sm80" that of mma.sp.

**"sm90_gated"** is "sm90" with the rows of a gated layer's weight [2F, k] stored so that the GEMM thread that owns
rows r and r + 8 of its tile holds both halves of a feature, and can compute act(gate) * up by itself::

    logical  r       (first half,  r < F)   ->   stored  16 (r / 8) + r % 8          F a multiple of 8
             F + r   (second half)          ->           16 (r / 8) + 8 + r % 8

Values and metadata follow the stored row; codes, and all that packs, unpacks or multiplies, speak of logical rows.
W^T of such a weight, whose rows are not features, is plain "sm90": `Format.transposed`.

**"plain"** is what the reference packs on a GPU whose own format nobody knows: codes in cells, row-major.

**"cusparselt"** is what that library's compressor gives, in an order of its own: see `OpaqueFormat`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NoReturn

import torch
from torch import Tensor

from s24compile.errors import DtypeError, ShapeError, TargetError
from s24compile.kernels.metadata import MetadataLayout, Plain, Sm80, Sm90Narrow, Sm90Wide


@dataclasses.dataclass(frozen=True)
class Format:
    """One 2:4 format: what sparse operands look like to one kind of kernel."""

    name: str
    wide: MetadataLayout
    narrow: MetadataLayout
    transposed: str
    """Name of the format of W^T, where W is of this one."""
    interleaved: bool = False
    """Whether the two halves of the rows are stored in turns of eight."""

    def layout(self, dtype: torch.dtype) -> MetadataLayout:
        """The metadata layout beside values of `dtype` (fp32 and fp64, reference only, take the 16-bit one)."""
        return self.narrow if dtype.itemsize == 1 else self.wide

    def metadata_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """dtype of the metadata tensor beside values of `dtype`."""
        return self.layout(dtype).cell

    def metadata_shape(self, m: int, k: int, dtype: torch.dtype) -> tuple[int, ...]:
        """Shape of the metadata tensor of a dense [m, k]."""
        return self.layout(dtype).shape(m, k)

    def values_shape(self, m: int, k: int) -> tuple[int, int]:
        """[m, k4/2]."""
        return m, (k + 3) // 4 * 2

    def values_pitch(self, k: int, dtype: torch.dtype) -> int:
        """Elements from one row of values to the next."""
        unit = max(8, 16 // dtype.itemsize)
        return ((k + 3) // 4 * 2 + unit - 1) // unit * unit

    def empty(self, m: int, k: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Allocates (values, metadata) of a dense [m, k]. Only the row padding is set, to 0."""
        rows, kept = self.values_shape(m, k)
        pitch = self.values_pitch(k, dtype)
        if pitch == kept:
            values = torch.empty((rows, kept), dtype=dtype, device=device)
        else:
            values = torch.zeros((rows, pitch), dtype=dtype, device=device)[:, :kept]
        metadata = torch.empty(self.metadata_shape(m, k, dtype), dtype=self.metadata_dtype(dtype), device=device)
        return values, metadata

    def empty_whole(self, m: int, k: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """`empty` with its padding: values [m, pitch] and metadata of `MetadataLayout.whole_shape`, both contiguous.

        For an operand of which m or k is a number of tokens, and so may be a symbol: whether rows are padded, or a dim
        has length 1, would depend on it; a traced tensor's flags ask for both, and each answer is another graph.
        `parts` gives the tensors of the logical shape.
        """
        values_shape, codes_shape = (m, self.values_pitch(k, dtype)), self.layout(dtype).whole_shape(m, k)
        # What is padding is 0, so that equal operands are equal in all of their bits; a traced tensor holds nothing.
        is_traced = isinstance(m, torch.SymInt) or isinstance(k, torch.SymInt)
        padded = not is_traced and values_shape != self.values_shape(m, k)
        spare = not is_traced and codes_shape != self.metadata_shape(m, k, dtype)
        values = (torch.zeros if padded else torch.empty)(values_shape, dtype=dtype, device=device)
        make = torch.zeros if spare else torch.empty
        return values, make(codes_shape, dtype=self.metadata_dtype(dtype), device=device)

    def parts(self, values: Tensor, metadata: Tensor, m: int, k: int) -> tuple[Tensor, Tensor]:
        """Views of the logical shape of what `empty_whole` or `empty` allocated."""
        return values[:, : self.values_shape(m, k)[1]], self.layout(values.dtype).part(metadata, m, k)

    def encode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 codes [m, groups] of logical rows -> metadata for values of `dtype`."""
        return self.layout(dtype).store(self.store_rows(codes))

    def decode(self, metadata: Tensor, m: int, k: int, dtype: torch.dtype) -> Tensor:
        """metadata -> uint8 codes [m, k4/4] of logical rows."""
        return self.load_rows(self.layout(dtype).load(metadata, m, (k + 3) // 4))

    def store_rows(self, x: Tensor) -> Tensor:
        """Rows in logical order -> as stored: what values and codes go through.

        Raises:
            ShapeError: the format interleaves halves, and these are no multiple of 8 rows.
        """
        if not self.interleaved:
            return x
        self._check_halves(x)
        return x.unflatten(0, (2, x.shape[0] // 16, 8)).transpose(0, 1).flatten(0, 2)

    def load_rows(self, x: Tensor) -> Tensor:
        """The inverse."""
        if not self.interleaved:
            return x
        self._check_halves(x)
        return x.unflatten(0, (x.shape[0] // 16, 2, 8)).transpose(0, 1).flatten(0, 2)

    def _check_halves(self, x: Tensor) -> None:
        if x.shape[0] % 16:
            accepted = f"{self.name} stores two halves of a multiple of 8 rows each in turns"
            raise ShapeError(what="the packed operand", shape=tuple(x.shape), accepted=accepted)


@dataclasses.dataclass(frozen=True)
class OpaqueFormat(Format):
    """A library's own format, which only its calls can write and read: values are its buffer, metadata is empty.

    torch gives a compressed matrix m rows and as many columns as hold the bytes that cuSPARSELt asks for
    (`_cslt_compress`). The library does not say how many those are; here they are bounded by what it must store, 16-bit
    kept values of whole 16 x 16 blocks and four-bit codes of whole 128 x 128 blocks, so that shapes are known without a
    GPU. Where both sizes are multiples of 128 that is torch's own shape, 9/16 of k columns.
    """

    def layout(self, dtype: torch.dtype) -> MetadataLayout:
        """Raises TargetError: nobody else knows the bits."""
        return self._refuse()

    def store_rows(self, x: Tensor) -> Tensor:
        """Raises TargetError: what is kept does not lie in rows."""
        return self._refuse()

    def load_rows(self, x: Tensor) -> Tensor:
        """Raises TargetError, as `store_rows`."""
        return self._refuse()

    def _refuse(self) -> NoReturn:
        raise TargetError(
            what=f"the format {self.name!r}",
            target="any device but its own",
            found="only the library's calls can write and read its bits",
            accepted=f"pack, unpack and multiply bf16 or fp16 on a CUDA device with the provider {self.name}",
        )

    def metadata_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of a tensor that holds nothing."""
        return torch.uint8

    def metadata_shape(self, m: int, k: int, dtype: torch.dtype) -> tuple[int, ...]:
        """[0]: the codes lie in the values' buffer."""
        return (0,)

    def values_shape(self, m: int, k: int) -> tuple[int, int]:
        """[m, columns that hold everything]."""
        kept = _whole(m, 16) * _whole(k, 16) // 2
        codes = _whole(m, 128) * _whole(k, 128) // 16
        rows = torch.sym_max(m, 1)
        return m, (kept + codes + rows - 1) // rows

    def empty(self, m: int, k: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Allocates (values, metadata) of a dense [m, k].

        Raises:
            DtypeError: not 16 bits wide.
        """
        if dtype not in (torch.bfloat16, torch.float16):
            accepted = f"the format {self.name} holds bf16 and fp16: use autocast, or another format"
            raise DtypeError(what="the packed operand", dtype=dtype, accepted=accepted)
        values = torch.empty(self.values_shape(m, k), dtype=dtype, device=device)
        return values, torch.empty((0,), dtype=torch.uint8, device=device)

    empty_whole = empty  # the buffer is contiguous, whatever k is

    def parts(self, values: Tensor, metadata: Tensor, m: int, k: int) -> tuple[Tensor, Tensor]:
        """The same tensors."""
        return values, metadata


def _whole(size: int, block: int) -> int:
    return (size + block - 1) // block * block


_SM90 = Format("sm90", wide=Sm90Wide(torch.int16, 64, 4), narrow=Sm90Narrow(torch.uint8, 64, 16), transposed="sm90")

FORMATS: dict[str, Format] = {
    "sm90": _SM90,
    "sm90_gated": dataclasses.replace(_SM90, name="sm90_gated", interleaved=True),
    "sm80": Format("sm80", wide=Sm80(torch.int16, 32, 2), narrow=Sm80(torch.int32, 16, 2), transposed="sm80"),
    "plain": Format("plain", wide=Plain(torch.int16, 1, 1), narrow=Plain(torch.uint8, 1, 1), transposed="plain"),
    # The two layouts stand for nothing here.
    "cusparselt": OpaqueFormat("cusparselt", wide=_SM90.wide, narrow=_SM90.narrow, transposed="cusparselt"),
}
"""Formats by name."""


@functools.cache
def code_table(device: torch.device, values: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """A small lookup table of patterns.py as a tensor on `device`, made once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
