"""The mask of one weight, S-STE's scale beside it, and how both are found.

Legend: N output features, K input features. "Logical" means [N, K], whatever the parameter's layout.
Source: fixed scale of the soft threshold [S-STE, arXiv 2409.09099].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

import s24compile.kernels.ops  # noqa: F401 (registers torch.ops.s24)
from s24compile.config import Config
from s24compile.weights.operand_request import WeightLayout
from s24compile.weights.schedule import CLOCK, WeightSchedule
from s24compile.weights.sharding import Shard

Part = tuple[int, int, int, Tensor]
"""(dim, start, length, patterns or mask) of some rows or columns."""


class WeightMask(WeightSchedule):
    """Pattern bytes of a weight, now and before the last search."""

    def __init__(
        self,
        parameter: Parameter,
        config: Config,
        layout: WeightLayout,
        shape: tuple[int, ...] | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(parameter, config)
        self.layout: WeightLayout = layout
        self.shape = tuple(parameter.shape) if shape is None else shape
        """As stored, of the tensor that graphs multiply by: under FSDP2 the gathered one, under TP the local one."""
        self.shard = shard
        """Which part of a tensor of that shape this process steps; None: all of it."""
        self.revision = 0
        """Moves when packed copies must follow although the weight itself did not change: new mask, new scale."""
        self.patterns: Tensor | None = None
        """Pattern bytes; holds a mask once `has_mask`."""
        self.has_mask = False
        self.previous: Tensor | None = None
        self.scale: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Bool, of `shape`: True where the weight is kept. All True before the first search."""
        if self.patterns is None or not self.has_mask:
            parameter = self.parameter()
            return torch.ones(self.shape, dtype=torch.bool, device=None if parameter is None else parameter.device)
        return self.mask_of(self.patterns)

    @property
    def flip_rate(self) -> float | None:
        """Share of the mask's elements that the last search changed; None before the second. Computed when asked."""
        changed = self.flips()
        return None if changed is None else float(changed)

    def flips(self) -> Tensor | None:
        """The flip rate as a 0-d float32 tensor on the weight's device: no host sync. None before the second search."""
        if self.patterns is None or self.previous is None:
            return None
        kind = self.recipe.pattern_kind
        now, before = (torch.ops.s24.expand_patterns(p, kind) for p in (self.patterns, self.previous))
        return (now != before).sum().float() / max(now.numel(), 1)

    def logical(self, stored: Tensor) -> Tensor:
        """A [N, K] view of a tensor that has the parameter's layout."""
        return stored.t() if self.layout == "in_out" else stored

    as_stored = logical  # transposing is its own inverse

    def mask_of(self, patterns: Tensor) -> Tensor:
        """The mask of these patterns of this weight: bool, shape of the parameter."""
        return self.as_stored(torch.ops.s24.expand_patterns(patterns, self.recipe.pattern_kind))

    def shard_patterns(self, patterns: Tensor) -> tuple[Part | None, list[Part]]:
        """The part of the patterns that this process steps, where the bounds of its shard may cut blocks or groups.

        Args:
            patterns: of the whole weight.

        Returns:
            (dim, start, length, patterns) of what is whole, or None; and up to two of (dim, start, length, mask), of
            what is cut. `dim` is one of the logical shard, `start` and `length` count its rows or columns.
        """
        rows, _ = self.shape if self.layout == "out_in" else self.shape[::-1]
        if self.shard is None:
            return (0, 0, rows, patterns), []
        dim = self.shard.dim if self.layout == "out_in" else 1 - self.shard.dim
        step = 4 if dim == 1 or self.recipe.pattern_kind == "transposable" else 1
        first, last = self.shard.start, self.shard.start + self.shard.length
        begin, end = -(-first // step) * step, last // step * step
        edges = []
        for low, high in ((first, min(begin, last)), (max(begin, end), last)):
            if low < high:
                block = torch.ops.s24.expand_patterns(patterns.narrow(dim, low // step, 1), self.recipe.pattern_kind)
                edges.append((dim, low - first, high - low, block.narrow(dim, low % step, high - low)))
        if begin >= end:
            return None, edges
        return (dim, begin - first, end - begin, patterns.narrow(dim, begin // step, (end - begin) // step)), edges

    def prepare(self, parameter: Tensor) -> Tensor:
        """Allocates the pattern buffer, and fixes S-STE's scale, at first use; follows the parameter's device.

        Returns: the patterns, uint8 [N/4, K/4] or [N, K/4]. Call inside `writing_state`.
        """
        device = parameter.device
        if self.patterns is None:
            self.patterns = torch.zeros(self.pattern_shape, dtype=torch.uint8, device=device)
        elif self.patterns.device != device:
            self.patterns = self.patterns.to(device)
            self.previous = None if self.previous is None else self.previous.to(device)
        if self.recipe.soft:
            if self.scale is None:
                beta = torch.ops.s24.soft_threshold_scale(self.logical(parameter)).float()
                usable = torch.isfinite(beta) & (beta > 0)  # no host sync; an all-zero weight has no scale of its own
                self.scale = torch.where(usable, beta, torch.ones_like(beta))
            elif self.scale.device != device:
                self.scale = self.scale.to(device)
        return self.patterns

    def remember_patterns(self) -> None:
        """Keeps the present patterns as the ones before the search that is about to overwrite them."""
        if self.patterns is None or not self.has_mask:
            return
        if self.previous is None:
            self.previous = torch.empty_like(self.patterns)
        self.previous.copy_(self.patterns)

    def search(self, parameter: Tensor) -> None:
        """Searches this weight's mask alone. (Packing with search=True does both in one read of the weight.)"""
        assert self.patterns is not None
        self.patterns.copy_(self.found_patterns(parameter))

    def set_scale(self, scale: Tensor) -> None:
        """Replaces S-STE's beta (baking writes it into the weight, and leaves 1)."""
        self.scale = scale
        self.touch()

    def touch(self) -> None:
        """Lets packed copies follow a new mask or scale."""
        self.revision += 1
        CLOCK.moves += 1

    def found_patterns(self, parameter: Tensor) -> Tensor:
        """The patterns that a search would find now."""
        rule = "transposable_patterns" if self.recipe.pattern_kind == "transposable" else "magnitude_patterns"
        found: Tensor = getattr(torch.ops.s24, rule)(self.logical(parameter.detach()))
        return found

    @property
    def pattern_shape(self) -> tuple[int, int]:
        """Shape of the patterns: of the logical weight in blocks of four by four, or rows of groups of four."""
        rows, cols = self.shape if self.layout == "out_in" else self.shape[::-1]
        return (rows // 4 if self.recipe.pattern_kind == "transposable" else rows, cols // 4)


@contextlib.contextmanager
def writing_state(device: torch.device) -> Iterator[None]:
    """Inside, buffers can be made and written that serve any later forward.

    Tensors made under inference_mode cannot be saved for a backward, and autocast would round what masks and
    scales are computed from.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
