"""Many tensors in one launch: a table of their addresses and sizes on the device, and who owns which program.

Building the table costs a copy to the device, so it is kept while the addresses stay what they are.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_KEPT = 64
"""Tables kept: several models, two phases and some reallocated gradients; each is a few kilobytes."""
_REPLAYED: list[tuple[Tensor, Tensor]] = []
"""Host memory from which CUDA graphs fill their tables at each replay; nothing says when a graph has gone."""


def capturing(device: torch.device) -> bool:
    """Whether launches now go into a CUDA graph: what they read must be the graph's own, and nothing of it be kept."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


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
    if not capturing(device):
        return _kept(device, entries, tiles)
    # A copy under capture happens at replay: eager calls must not find this table, nor a graph read one that may go.
    host, owners = (x.pin_memory() for x in _on_host(entries, tiles))
    _REPLAYED.append((host, owners))
    return host.to(device, non_blocking=True), owners.to(device, non_blocking=True), len(owners)


@functools.lru_cache(maxsize=_KEPT)
def _kept(
    device: torch.device, entries: tuple[tuple[int, ...], ...], tiles: tuple[int, ...]
) -> tuple[Tensor, Tensor, int]:
    host, owners = _on_host(entries, tiles)
    # Waits for the copy, once a table: any stream may read it from now on.
    return host.to(device), owners.to(device), len(owners)


def _on_host(entries: tuple[tuple[int, ...], ...], tiles: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    first, words = 0, []
    for entry, count in zip(entries, tiles, strict=True):
        words.append((*entry, first))
        first += count
    # "cpu" is said each time: the caller may have set a default device.
    programs = torch.tensor(tiles, device="cpu")
    owners = torch.repeat_interleave(torch.arange(len(tiles), dtype=torch.int32, device="cpu"), programs)
    return torch.tensor(words, dtype=torch.int64, device="cpu"), owners
