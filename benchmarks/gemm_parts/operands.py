"""Random 2:4 operands, packed and dense, and what the GEMM should give."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from s24compile.kernels.format import FORMATS
from s24compile.kernels.packed import Packed24
from s24compile.kernels.patterns import PAIR_CODES


@dataclasses.dataclass
class Sparse:
    """S [m, k], random normal where kept."""

    values: Tensor
    metadata: Tensor
    m: int
    k: int
    codes: Tensor
    """uint8 [m, k4/4]"""

    def packed(self, format: str = "sm90") -> Packed24:
        """S as the kernels take it."""
        return Packed24.of(self.values, self.metadata, self.m, self.k, format)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """S as an ordinary matrix [m, k]."""
        groups = self.codes.shape[1]
        out = torch.zeros(self.m, groups, 4, dtype=dtype or self.values.dtype, device=self.values.device)
        kept = self.values.reshape(self.m, groups, 2).to(out.dtype)
        out.scatter_(2, (self.codes & 3).long()[..., None], kept[..., :1])
        out.scatter_(2, (self.codes >> 2).long()[..., None], kept[..., 1:])
        return out.flatten(1)[:, : self.k]


def random_sparse(m: int, k: int, dtype: torch.dtype, device: str, major: str = "k") -> Sparse:
    """Packs a random S directly: any codes are legal. `major` "m" stores the values transposed."""
    form = FORMATS["sm90"]
    groups = (k + 3) // 4
    table = torch.tensor(PAIR_CODES, dtype=torch.uint8, device=device)
    codes = table[torch.randint(len(PAIR_CODES), (m, groups), device=device)]
    values, _ = form.empty(m, k, dtype, torch.device(device))
    drawn = torch.randn(values.shape, device=device)
    if k % 4:
        # What lies beyond K in the last group reads B out of bounds (as zero): keep it zero on our side too.
        last = codes[:, -1]
        for slot, position in enumerate((last & 3, last >> 2)):
            drawn[:, -2 + slot].masked_fill_(position >= k % 4, 0)
    values.copy_(drawn)
    if major == "m":
        pitch = (m + 7) // 8 * 8
        store = torch.zeros(values.shape[1], pitch, dtype=dtype, device=device)
        store[:, :m].copy_(values.t())
        values = store[:, :m].t()
    return Sparse(values, form.encode(codes, dtype), m, k, codes)


def relative_error(got: Tensor, exact: Tensor) -> float:
    """|got - exact| / |exact| in the Frobenius norm, fp64. NaN where anything is NaN or was not written."""
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-300))
