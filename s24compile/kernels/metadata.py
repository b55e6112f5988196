"""The metadata of the 2:4 formats, drawn once: where the two-bit positions of kept values lie in memory. A leaf.

Legend: m rows, k columns of the dense matrix (k is the contraction dim); a *group* is four neighbours of a row.

**Codes.** A group keeps two of its four elements, at i < j; its code is four bits, ``i | j << 2``::

    group      x0  x1  x2  x3      kept x1, x3  ->  values  x1 x3   code  0b1101
                   ^^      ^^                                             jjii

Codes are stored little-endian in *cells*: the group of lowest k in the lowest four bits. `patterns.py` lists the six.

**Metadata, "sm90"** (wgmma.sp; CUTLASS `sm90_sparse_config.inl`). Atoms of 64 rows by one K_atom, stored
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

import torch
from torch import Tensor

from s24compile.kernels.patterns import PAIR_CODES

PADDING_CODE = PAIR_CODES[0]


@dataclasses.dataclass(frozen=True)
class MetadataLayout:
    """How the codes of one format and value width lie in memory; a subclass says in which order.

    A padded matrix of cells [M, C] has M a multiple of `rows` and C one of `columns`.
    """

    cell: torch.dtype
    rows: int
    columns: int

    @property
    def codes_per_cell(self) -> int:
        """How many groups one cell describes."""
        return self.cell.itemsize * 2

    def padded(self, m: int, groups: int) -> tuple[int, int]:
        """Rows and columns of the matrix of cells for codes [m, groups]."""
        per_atom = self.columns * self.codes_per_cell
        return (m + self.rows - 1) // self.rows * self.rows, (groups + per_atom - 1) // per_atom * self.columns

    def shape(self, m: int, k: int) -> tuple[int, ...]:
        """Shape of the metadata tensor of a dense [m, k]."""
        return self.padded(m, (k + 3) // 4)

    def whole_shape(self, m: int, k: int) -> tuple[int, ...]:
        """`shape`, or more: no size is 1 because m or k is small."""
        return tuple(torch.sym_max(size, 2) for size in self.shape(m, k))

    def part(self, metadata: Tensor, m: int, k: int) -> Tensor:
        """The view of `shape` on a tensor of `whole_shape`."""
        for dim, size in enumerate(self.shape(m, k)):
            metadata = metadata.narrow(dim, 0, size)
        return metadata

    def store(self, codes: Tensor) -> Tensor:
        """uint8 codes [m, groups] -> metadata, contiguous, padding included."""
        m, groups = codes.shape
        rows, columns = self.padded(m, groups)
        rest = (0, columns * self.codes_per_cell - groups, 0, rows - m)
        codes = torch.nn.functional.pad(codes, rest, value=PADDING_CODE)
        # Flat, because a cell is read from neighbouring bytes, and [rows, 0] has no such strides.
        cells = (codes[:, 0::2] | codes[:, 1::2] << 4).flatten().view(self.cell)
        return self.shuffle(cells.reshape(rows, columns)).reshape(self.shape(m, 4 * groups)).contiguous()

    def load(self, metadata: Tensor, m: int, groups: int) -> Tensor:
        """metadata, whole or not -> uint8 codes [m, groups]."""
        rows, columns = self.padded(m, groups)
        cells = self.unshuffle(self.part(metadata, m, 4 * groups).contiguous(), rows, columns)
        pairs = cells.flatten().view(torch.uint8).reshape(rows, columns * self.cell.itemsize)
        return torch.stack((pairs & 15, pairs >> 4), dim=-1).flatten(1)[:m, :groups]

    def planes(self, metadata: Tensor) -> Tensor:
        """Metadata seen so that dim 0 leads from one column of atoms to the next; no copy.

        Such a column describes `rows_of` and `columns_of` a part of the operand: kernels write parts of it.
        """
        raise NotImplementedError

    def rows_of(self, planes: Tensor, start: int, stop: int) -> Tensor:
        """The part of `planes` that describes rows [start, stop) of the dense operand."""
        raise NotImplementedError

    def columns_of(self, planes: Tensor, start: int, stop: int) -> Tensor:
        """The part of `planes` that describes columns [start, stop) of the dense operand."""
        width = 4 * self.columns * self.codes_per_cell
        return planes[start // width : (stop + width - 1) // width]

    def shuffle(self, cells: Tensor) -> Tensor:
        """Cells [M, C] -> the same in the order of memory."""
        raise NotImplementedError

    def unshuffle(self, metadata: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse: metadata -> cells [rows, columns]."""
        raise NotImplementedError


class Plain(MetadataLayout):
    """Cells as they come, row-major: no hardware reads it, the reference does where no other format is known."""

    def shuffle(self, cells: Tensor) -> Tensor:
        """Nothing to do."""
        return cells

    def unshuffle(self, metadata: Tensor, rows: int, columns: int) -> Tensor:
        """Nothing to do."""
        return metadata


class Sm90(MetadataLayout):
    """Whole atoms of `rows` by `columns` cells, along M first; a subclass says how their cells lie within."""

    def shape(self, m: int, k: int) -> tuple[int, ...]:
        """[k_atoms, m_atoms, cells of an atom]."""
        rows, columns = self.padded(m, (k + 3) // 4)
        return columns // self.columns, rows // self.rows, self.rows * self.columns

    def planes(self, metadata: Tensor) -> Tensor:
        """As it is: dim 0 is that of K atoms."""
        return metadata

    def rows_of(self, planes: Tensor, start: int, stop: int) -> Tensor:
        """Whole M atoms."""
        return planes[:, start // self.rows : (stop + self.rows - 1) // self.rows]


class Sm90Wide(Sm90):
    """Atoms of 64 x 64 beside 16-bit values, shuffled within."""

    def shuffle(self, cells: Tensor) -> Tensor:
        """Digits m_atom, m2, m1, m0, k_atom, k2, k1 -> k_atom, m_atom, m2, k1, m0, k2, m1."""
        rows, columns = cells.shape
        return cells.reshape(rows // 64, 4, 2, 8, columns // 4, 2, 2).permute(4, 0, 1, 6, 3, 5, 2)

    def unshuffle(self, metadata: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse."""
        atoms = metadata.reshape(columns // 4, rows // 64, 4, 2, 8, 2, 2)
        return atoms.permute(1, 2, 6, 4, 0, 5, 3).reshape(rows, columns)


class Sm90Narrow(Sm90):
    """Atoms of 64 x 128 beside 8-bit values, row-major within."""

    def shuffle(self, cells: Tensor) -> Tensor:
        """Digits m_atom, r, k_atom, c -> k_atom, m_atom, r, c."""
        rows, columns = cells.shape
        return cells.reshape(rows // 64, 64, columns // 16, 16).permute(2, 0, 1, 3)

    def unshuffle(self, metadata: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse."""
        return metadata.reshape(columns // 16, rows // 64, 64, 16).permute(1, 2, 0, 3).reshape(rows, columns)


class Sm80(MetadataLayout):
    """One matrix of cells with shuffled rows, transposed 2x2 blocks and interleaved columns."""

    def planes(self, metadata: Tensor) -> Tensor:
        """[pairs of columns, two cells of each row]."""
        return metadata.view(metadata.shape[1] // 2, 2 * metadata.shape[0])

    def rows_of(self, planes: Tensor, start: int, stop: int) -> Tensor:
        """Two cells a row, whole groups of shuffled rows."""
        return planes[:, 2 * start : (stop + self.rows - 1) // self.rows * 2 * self.rows]

    def shuffle(self, cells: Tensor) -> Tensor:
        """Digits g, a, b of rows -> g, b, a = p, s; then p, s, q, t -> q, p, t, s."""
        rows, columns = cells.shape
        shuffled = cells.reshape(rows // self.rows, self.rows // 8, 8, columns).transpose(1, 2)
        return shuffled.reshape(rows // 2, 2, columns // 2, 2).permute(2, 0, 3, 1)

    def unshuffle(self, metadata: Tensor, rows: int, columns: int) -> Tensor:
        """The inverse."""
        shuffled = metadata.reshape(columns // 2, rows // 2, 2, 2).permute(1, 3, 0, 2)
        digits = shuffled.reshape(rows // self.rows, 8, self.rows // 8, columns)
        return digits.transpose(1, 2).reshape(rows, columns)
