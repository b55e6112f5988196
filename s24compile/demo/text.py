"""Real text that every machine has: the sources of Python's own standard library, as bytes."""

from __future__ import annotations

import dataclasses
import random
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from s24compile.errors import ModelError

# Whole packages that are tests or generated tables would fill the text with data instead of code.
SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "encodings"}


@dataclasses.dataclass(frozen=True)
class ByteText:
    """A text as bytes, split into the part to train on and the part held out."""

    train: Tensor
    """uint8 [n]"""
    validation: Tensor
    """uint8 [m]"""

    def batch(self, part: str, step: int, *, seed: int, size: int, length: int) -> tuple[Tensor, Tensor]:
        """Draws the batch of one step: inputs and targets, int64 [size, length] each.

        A function of (part, step, seed) alone, so that two runs see the same batches and a resumed run continues with
        the batch that it would have had.
        """
        data = self.train if part == "train" else self.validation
        # Hashed, because torch's CPU generator looks at the low 32 bits of a seed only.
        draw = random.Random(f"{part} {step} {seed}").getrandbits(32)
        generator = torch.Generator().manual_seed(draw)
        starts = torch.randint(len(data) - length, (size, 1), generator=generator)
        window = data[starts + torch.arange(length + 1)].long()
        return window[:, :-1], window[:, 1:]


def read_sources(root: Path | None = None, *, limit: int = 16 << 20, held_out: float = 0.1) -> ByteText:
    """Reads the .py files below `root` (None: the standard library) in sorted order, at most `limit` bytes.

    Whole files are held out, every tenth or so, so that the validation text was never seen.

    Raises:
        ModelError: fewer than 64 KiB of text below `root`.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[bytearray, bytearray] = (bytearray(), bytearray())
    every = round(1 / held_out)
    files = sorted(p for p in root.rglob("*.py") if not SKIPPED & set(p.relative_to(root).parts))
    for index, path in enumerate(files):
        parts[index % every == every - 1].extend(path.read_bytes())
        if sum(map(len, parts)) >= limit:
            break
    if min(map(len, parts)) < 4096 or sum(map(len, parts)) < 1 << 16:
        raise ModelError(
            what=f"text below {root}", found=f"{sum(map(len, parts))} bytes of .py files", accepted="64 KiB are needed"
        )
    train, validation = (torch.frombuffer(part, dtype=torch.uint8) for part in parts)
    return ByteText(train, validation)
