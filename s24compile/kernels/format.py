"""The 2:4 formats, drawn once: where kept values and the two-bit positions of them lie in memory. A leaf.

Legend: m rows, k columns of the dense matrix (k is the contraction dim); a *group* is four neighbours of a row;
k4 is k rounded up to a multiple of 4.

**Codes.** A group keeps two of its four elements, at i < j; its code is four bits, ``i | j << 2``::

    group      x0  x1  x2  x3      kept x1, x3  ->  values  x1 x3   code  0b1101
                   ^^      ^^                                             jjii

Codes are stored little-endian in *cells*: the group of lowest k in the lowest four bits. `patterns.py` lists the six.

**Values.** [m, k4/2], the kept elements of each row in order. The row pitch is padded to 16 bytes (8 elements for
fp32 and fp64, which only the reference reads) so that TMA can load it; the logical shape has no padding.

**Metadata, "sm90"** (wgmma.sp; CUTLASS `sm90_sparse_config.inl`; HOPPER.md). Atoms of 64 rows by one K_atom, stored
along M first, then K; [k_atoms, m_atoms, cells of an atom], so rows [64a, 64b) are the view ``[:, a:b]``::

                 k ->   K_atom   K_atom            16-bit values: K_atom = 64,  a cell is an int16 = 4 codes = 16 k
            m  64 rows |atom 0 | |atom 2 |          8-bit values: K_atom = 128, a cell is a uint8  = 2 codes =  8 k
            |  64 rows |atom 1 | |atom 3 |
            v

    16-bit atom: row r = m0 + 8 m1 + 16 m2 (m0 < 8, m1 < 2, m2 < 4), chunk of 16 k: c = k1 + 2 k2 (k1, k2 < 2);
    index of the cell, fastest digit last:   [m2][k1][m0][k2][m1]        (8 bits: [r][c], plain row-major)

**Metadata, "sm80"** (mma.sp; torch.sparse's own). Cells of int16 = 4 codes (16-bit values) or int32 = 8 codes
(8-bit). Rows are shuffled within G = 32 (int16) or 16 (int32); then each 2x2 block of cells is transposed; then
pairs of columns are interleaved::

    row r = G g + 8 a + b  ->  r' = G g + b (G / 8) + a = 2 p + s,  column c = 2 q + t;   stored  [q][p][t][s]

Padding (m to 64, 32 or 16 rows, k to whole atoms) holds the code of positions (0, 1), and no values: they read as 0.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from s24compile.kernels.patterns import PAIR_CODES

PADDING_CODE = PAIR_CODES[0]


@dataclasses.dataclass(frozen=True)
class MetadataLayout:
    """How the codes of one format and value width lie in memory.

    `rows` and `groups` are what m and the groups of k are padded to. `split` are the digits of a padded matrix of
    cells [m, columns], rows then columns, -1 where there may be many; `order` lists those digits from slowest to
    fastest in memory; `shape` says which runs of `order` are flattened into one dim of the metadata tensor.
    """

    cell: torch.dtype
    rows: int
    groups: int
    row_digits: tuple[int, ...]
    column_digits: tuple[int, ...]
    order: tuple[int, ...]
    atoms: bool

    @property
    def codes_per_cell(self) -> int:
        """How many groups one cell describes."""
        return self.cell.itemsize * 2

    def shape(self, m: int, k: int) -> tuple[int, ...]:
        """Shape of the metadata tensor of a dense [m, k]."""
        m_atoms, k_atoms = (m + self.rows - 1) // self.rows, (k + 4 * self.groups - 1) // (4 * self.groups)
        columns = self.groups // self.codes_per_cell
        if self.atoms:
            return k_atoms, m_atoms, self.rows * columns
        return m_atoms * self.rows, k_atoms * columns

    def store(self, codes: Tensor) -> Tensor:
        """uint8 codes [m, groups] -> metadata, contiguous, padding included."""
        m, groups = codes.shape
        shape = self.shape(m, 4 * groups)
        padded_m, padded_g = -(-m // self.rows) * self.rows, -(-groups // self.groups) * self.groups
        if (padded_m, padded_g) != (m, groups):
            codes = torch.nn.functional.pad(codes, (0, padded_g - groups, 0, padded_m - m), value=PADDING_CODE)
        codes = codes.contiguous()  # cells are read from neighbouring bytes
        cells = (codes[:, 0::2] | codes[:, 1::2] << 4).view(self.cell)
        return self._digits(cells).permute(self.order).reshape(shape).contiguous()

    def load(self, metadata: Tensor, m: int, groups: int) -> Tensor:
        """metadata -> uint8 codes [m, groups]."""
        padded_m = -(-m // self.rows) * self.rows
        columns = -(-groups // self.groups) * self.groups // self.codes_per_cell
        digits = self._digits(torch.empty(padded_m, columns, dtype=torch.uint8, device="meta"))
        stored = metadata.reshape([digits.shape[d] for d in self.order])
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        pairs = stored.permute(inverse).reshape(padded_m, columns).contiguous().view(torch.uint8)
        codes = torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)
        return codes[:m, :groups]

    def _digits(self, cells: Tensor) -> Tensor:
        """[m, columns] -> one dim per digit: the many atoms of m, its digits, the many of k, its digits."""
        m, columns = cells.shape
        per_atom = self.groups // self.codes_per_cell
        rows, wide = (m // self.rows, *self.row_digits), (columns // per_atom, *self.column_digits)
        return cells.reshape(*rows, *wide)


# Digits of sm90, 16-bit: 0 m_atom, 1 m2, 2 m1, 3 m0, 4 k_atom, 5 k2, 6 k1.   8-bit: 0 m_atom, 1 r, 2 k_atom, 3 c.
_SM90_16 = MetadataLayout(torch.int16, 64, 16, (4, 2, 8), (2, 2), (4, 0, 1, 6, 3, 5, 2), atoms=True)
_SM90_8 = MetadataLayout(torch.uint8, 64, 32, (64,), (16,), (2, 0, 1, 3), atoms=True)


class _Sm80Layout(MetadataLayout):
    """The row shuffle of G rows merges digits before they split again, so it is a second view."""

    def _digits(self, cells: Tensor) -> Tensor:
        """[m, columns] -> digits p, s, q, t of the shuffled matrix (see the module's drawing)."""
        m, columns = cells.shape
        shuffled = cells.reshape(m // self.rows, self.rows // 8, 8, columns).transpose(1, 2)
        return shuffled.reshape(m // 2, 2, columns // 2, 2)

    def load(self, metadata: Tensor, m: int, groups: int) -> Tensor:
        """metadata -> uint8 codes [m, groups]."""
        padded_m, columns = metadata.shape
        stored = metadata.reshape(columns // 2, padded_m // 2, 2, 2)  # q, p, t, s
        shuffled = stored.permute(1, 3, 0, 2).reshape(padded_m // self.rows, 8, self.rows // 8, columns)
        pairs = shuffled.transpose(1, 2).reshape(padded_m, columns).contiguous().view(torch.uint8)
        return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)[:m, :groups]


_SM80_16 = _Sm80Layout(torch.int16, 32, 8, (), (), (2, 0, 3, 1), atoms=False)
_SM80_8 = _Sm80Layout(torch.int32, 16, 16, (), (), (2, 0, 3, 1), atoms=False)


@dataclasses.dataclass(frozen=True)
class Format:
    """One 2:4 format: what sparse operands look like for one generation of tensor cores."""

    name: str
    wide: MetadataLayout
    narrow: MetadataLayout

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
        """Allocates (values, metadata) of a dense [m, k]. Kernels write all of it; only the row padding is set, to 0."""
        rows, kept = self.values_shape(m, k)
        pitch = self.values_pitch(k, dtype)
        if pitch == kept:
            values = torch.empty((rows, kept), dtype=dtype, device=device)
        else:
            values = torch.zeros((rows, pitch), dtype=dtype, device=device)[:, :kept]
        metadata = torch.empty(self.metadata_shape(m, k, dtype), dtype=self.metadata_dtype(dtype), device=device)
        return values, metadata

    def encode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 codes [m, groups] -> metadata for values of `dtype`."""
        return self.layout(dtype).store(codes)

    def decode(self, metadata: Tensor, m: int, k: int, dtype: torch.dtype) -> Tensor:
        """metadata -> uint8 codes [m, k4/4]."""
        return self.layout(dtype).load(metadata, m, (k + 3) // 4)


FORMATS: dict[str, Format] = {"sm90": Format("sm90", _SM90_16, _SM90_8), "sm80": Format("sm80", _SM80_16, _SM80_8)}


@functools.cache
def code_table(device: torch.device, values: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    """A small lookup table of patterns.py as a tensor on `device`, made once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
