"""What samples are made of: one call's arguments, and random tensors of one dtype on one device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from s24compile.kernels.masks import reference as masks
from s24compile.kernels.pack import reference as packing

FORMATS = ("sm90", "sm80")
"""Formats of operands with any number of rows; "sm90_gated" has samples of its own shapes."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One call: the op's positional arguments, and what is special about it."""

    note: str
    args: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Maker:
    """Draws random tensors of one dtype on one device, from its own generator."""

    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator

    def normal(self, *shape: int) -> Tensor:
        """Standard normal values."""
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device, self.dtype)

    def grid(self, *shape: int) -> Tensor:
        """Integers in [-2, 2]: ties in nearly every group, exact in every dtype."""
        return torch.randint(-2, 3, shape, generator=self.generator).to(self.device, self.dtype)

    def numbers(self, count: int) -> Tensor:
        """Small int32 numbers."""
        return torch.randint(0, 5, (count,), generator=self.generator, dtype=torch.int32).to(self.device)

    def seed(self, value: int = 0x1234_5678_9ABC) -> Tensor:
        """A seed tensor."""
        return torch.tensor([value], dtype=torch.int64, device=self.device)

    def strided(self, *shape: int) -> Tensor:
        """Normal values with an offset and a row pitch."""
        return self.normal(shape[0] + 1, shape[1] + 8)[1:, 4 : shape[1] + 4]

    def packed(self, m: int, k: int, format: str) -> tuple[Tensor, Tensor]:
        """(values, metadata) of a random 2:4 matrix."""
        w = self.normal(m, (k + 3) // 4 * 4)
        values, metadata = packing.pack(w, masks.magnitude_mask(w), self.dtype, format)
        return values, metadata

    def operand(self, m: int, k: int, format: str) -> tuple[Tensor, Tensor, int, int, str]:
        """(values, metadata, m, k, format) of a random 2:4 matrix, as the products take it."""
        return (*self.packed(m, k, format), m, k, format)


Samples = dict[str, Callable[[Maker], Iterator[Sample]]]
"""Op name to the function that yields its samples."""
