"""Many tensors in one launch: a table of their addresses and sizes on the device, and who owns which program.

Building the table costs a copy to the device, so it is kept while the addresses stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")
Table = tuple[Tensor, Tensor, int]
_KEPT = 64
"""Tables kept: several models, two phases and some reallocated gradients; each is a few kilobytes."""
_TABLES: dict[tuple[object, ...], Table] = {}
OF_GRAPHS: list[object] = []
"""What CUDA graphs read at each replay: tables, or host memory that fills them. Nothing says when a graph has gone."""


def capturing(device: torch.device) -> bool:
    """Whether launches now go into a CUDA graph: what they read must live as long as that does."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def remembered(kept: dict[Any, V], limit: int, key: Hashable, device: torch.device, make: Callable[[], V]) -> V:
    """kept[key], or what `make` makes, kept in place of the oldest of `limit`.

    What is made while launches go into a CUDA graph holds what it should at replay alone: nobody else may find it.
    """
    found = kept.get(key)
    made = make() if found is None else found
    if capturing(device):
        OF_GRAPHS.append(made)
    elif found is None:
        while len(kept) >= limit:
            del kept[next(iter(kept))]
        kept[key] = made
    return made


def table(device: torch.device, entries: tuple[tuple[int, ...], ...], tiles: tuple[int, ...]) -> Table:
    """(entries, owners, programs) on `device`.

    Args:
        entries: int64 words of each tensor; the number of its first program is appended here.
        tiles: how many programs each tensor takes.

    Returns:
        entries int64 [n, words + 1]; owners int32 [programs], the entry that each program works for.
    """
    return remembered(_TABLES, _KEPT, (device, entries, tiles), device, lambda: _made(device, entries, tiles))


def _made(device: torch.device, entries: tuple[tuple[int, ...], ...], tiles: tuple[int, ...]) -> Table:
    words, owners = _on_host(entries, tiles)
    if device.type != "cuda":
        return words, owners, len(owners)
    # From pinned memory and without waiting: the host must not stop for the work queued before.
    pinned = words.pin_memory(), owners.pin_memory()
    if capturing(device):  # the copy happens at each replay
        OF_GRAPHS.append(pinned)
    return pinned[0].to(device, non_blocking=True), pinned[1].to(device, non_blocking=True), len(owners)


def _on_host(entries: tuple[tuple[int, ...], ...], tiles: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    first, words = 0, []
    for entry, count in zip(entries, tiles, strict=True):
        words.append((*entry, first))
        first += count
    # "cpu" is said each time: the caller may have set a default device.
    programs = torch.tensor(tiles, device="cpu")
    owners = torch.repeat_interleave(torch.arange(len(tiles), dtype=torch.int32, device="cpu"), programs)
    return torch.tensor(words, dtype=torch.int64, device="cpu"), owners
