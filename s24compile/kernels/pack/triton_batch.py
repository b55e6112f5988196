"""Many tensors in one launch: a table of their addresses and sizes on the device, and who owns which program.

Building the table costs a copy to the device, so it is kept while the addresses stay what they are.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_KEPT = 64
"""Tables kept: several models, two phases and some reallocated gradients; each is a few kilobytes."""


@functools.lru_cache(maxsize=_KEPT)
def table(
    device: torch.device, entries: tuple[tuple[int, ...], ...], tiles: tuple[int, ...]
) -> tuple[Tensor, Tensor, int]:
    """(entries, owners, programs) on `device`.

    Args:
        entries: int64 words of each tensor; the number of its first program is appended here.
        tiles: how many programs each tensor takes.

    Returns:
        entries int64 [n, words + 1]; owners int32 [programs], the entry that each program works for.
    """
    first, words = 0, []
    for entry, count in zip(entries, tiles, strict=True):
        words.append((*entry, first))
        first += count
    # "cpu" is said each time: the caller may have set a default device.
    host = torch.tensor(words, dtype=torch.int64, device="cpu")
    programs = torch.tensor(tiles, device="cpu")
    owners = torch.repeat_interleave(torch.arange(len(tiles), dtype=torch.int32, device="cpu"), programs)
    if device.type != "cuda":
        return host, owners, first
    # From pinned memory and without waiting: the host must not stop for the work queued before.
    return host.pin_memory().to(device, non_blocking=True), owners.pin_memory().to(device, non_blocking=True), first
