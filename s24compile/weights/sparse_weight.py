"""The state of one sparse weight: its mask and scale, over its schedule. `registry.py` says which Parameter has which.

Legend: N output features, K input features. "Logical" means [N, K], whatever the parameter's layout.
Sources: masked decay [FST, arXiv 2404.01847]; fixed scale of the soft threshold [S-STE, 2409.09099].
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

import s24compile.kernels.ops  # noqa: F401 (registers torch.ops.s24)
from s24compile.config import Config
from s24compile.weights.checkpoint import Entry, problem_of_entry, problem_of_patterns
from s24compile.weights.operand_request import WeightLayout
from s24compile.weights.schedule import CLOCK, WeightSchedule
from s24compile.weights.storage_reference import StorageReference

Content = tuple[int, int, int, int]
"""(version, data_ptr, number of the storage, tick): equal means that nobody whom we can see has written the weight in
between, if the storage is still there."""


class SparseWeight(WeightSchedule):
    """The live state of one 2:4 weight. Read it through `s24compile.sparse_weights(model)`; the package writes it."""

    def __init__(self, parameter: Parameter, config: Config, name: str, layout: WeightLayout) -> None:
        super().__init__(parameter, config)
        self.name = name
        self.layout: WeightLayout = layout
        self.shape = tuple(parameter.shape)
        self.storage = StorageReference(parameter)
        """What the parameter's storage was when its content was last noted."""
        self.storage_number = 0
        """Moves with `storage`: a data_ptr may be that of an earlier storage, which is gone."""
        self._decay = config.decay
        self.packed_at = 0
        """CLOCK.tick at the last pack: not before `tick`, if the forward since then was a sparse one."""
        self.warned = False
        """Whether it has been said that this weight trained on a dense forward."""
        self.revision = 0
        """Moves when packed copies must follow although the weight itself did not change: new mask, new scale."""
        self.patterns: Tensor | None = None
        """Pattern bytes; holds a mask once `has_mask`."""
        self.has_mask = False
        self.previous: Tensor | None = None
        self.scale: Tensor | None = None
        self._search_demanded = False
        self._searched_content: Content | None = None

    def __repr__(self) -> str:
        return (
            f"SparseWeight({self.name!r}, {self.recipe.name}, {list(self.shape)}, {self.phase}, steps={self.steps}, "
            f"age={self.age})"
        )

    @property
    def decay(self) -> float:
        """Lambda in use: Config's, until another is assigned, which takes no new compilation.

        Raises:
            OptionError: on assignment, what `Config.decay` does not take either.
        """
        return self._decay

    @decay.setter
    def decay(self, value: float) -> None:
        self._decay = dataclasses.replace(self.config, decay=value).decay

    @property
    def mask(self) -> Tensor:
        """Bool, shape of the parameter: True where the weight is kept. All True before the first search."""
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

    def content(self, parameter: Tensor) -> Content:
        """What tells one content of the weight from the next; see `Content`."""
        if not self.storage.is_of(parameter):
            self.storage = StorageReference(parameter)
            self.storage_number += 1
        # An optimizer that we cannot connect with this object may own it all the same: sharded optimizers step shards
        # and hand out gathered parameters. So any optimizer's step counts for a parameter that none is seen to hold.
        tick = self.tick if self.held or not parameter.requires_grad else CLOCK.tick
        return version_of(parameter), parameter.data_ptr(), self.storage_number, tick

    def search_due(self, parameter: Tensor, content: Content) -> bool:
        """Whether the forward that is about to come must search the mask anew: every `mask_interval` steps.

        A mask whose weight is not known (restored, inherited, refreshed) is compared with what a search finds, at the
        price of one host sync: only so does an unchanged weight keep its age and flip rate, and a changed one not keep
        its mask.
        """
        if not self.has_mask or self._search_demanded:
            return True
        if not self._may_search:
            return False
        if self.config.freshness == "always":
            return True
        if self._searched_content is not None:
            return content != self._searched_content
        # What trains has been stepped since; what is frozen has an age all the same.
        return (self.scheduled_age > 0 and parameter.requires_grad) or not self._is_mask_of(parameter)

    def prepare(self, parameter: Tensor) -> Tensor:
        """Allocates the pattern buffer, and fixes S-STE's scale, at first use; follows the parameter's device.

        Returns: the patterns, uint8 [N/4, K/4] or [N, K/4]. Call inside `writing_state`.
        """
        device = parameter.device
        if self.patterns is None:
            self.patterns = torch.zeros(self._pattern_shape(), dtype=torch.uint8, device=device)
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
        self.patterns.copy_(self._found_patterns(parameter))

    def next_patterns(self, parameter: Tensor) -> Tensor:
        """The patterns of the next sparse forward: `self.patterns`, or new ones where it will search.

        Changes nothing, so that whoever reads the weight before that forward sees what it will compute with.
        """
        if self.patterns is None or self.search_due(parameter, self.content(parameter)):
            return self._found_patterns(parameter)
        return self.patterns.to(parameter.device)

    def search_if_due(self, parameter: Tensor) -> None:
        """Does now the search of the next forward, if it has one to do. Needs `prepare`."""
        assert self.patterns is not None
        patterns = self.next_patterns(parameter)
        if patterns is not self.patterns:
            self.remember_patterns()
            self.patterns.copy_(patterns)
            self.searched(self.content(parameter))

    def searched(self, content: Content) -> None:
        """Notes that the mask now is that of `content`."""
        self.note_search()
        self._searched_content = content
        self.has_mask, self._search_demanded = True, False
        self.revision += 1

    def met(self, content: Content) -> None:
        """Notes that a pack did not search; where it might have, the mask is that of `content`."""
        if self._searched_content is None and self._may_search:
            self._searched_content = content

    def search_overdue(self, content: Content) -> bool:
        """Whether the interval of a mask is over that is of another content, or nobody knows of which."""
        # At each forward of a frozen weight: mostly the first comparison decides.
        return content != self._searched_content and self.has_mask and self.recipe.uses_interval and self._may_search

    def forget_searched(self) -> None:
        """Notes that the weight may have been written where nothing shows: whose mask this is, is not known."""
        self._searched_content = None

    def demand_search(self) -> None:
        """Makes the next pack search, whatever the schedule says."""
        self._search_demanded = True

    def set_scale(self, scale: Tensor) -> None:
        """Replaces S-STE's beta (baking writes it into the weight, and leaves 1)."""
        self.scale = scale
        self.revision += 1

    def entry(self) -> Entry:
        """A snapshot for a checkpoint, see `weights/checkpoint.py`. Tensors are copies."""
        entry: Entry = {
            "recipe": self.recipe.name,
            "layout": self.layout,
            "shape": list(self.shape),
            **self.schedule_entry(),
        }
        with torch.inference_mode(False), torch.no_grad():
            for field, value in (("patterns", self.patterns), ("previous", self.previous), ("scale", self.scale)):
                if value is not None and self.has_mask:
                    entry[field] = value.detach().clone()
        return entry

    def problem_of(self, entry: object) -> str | None:
        """Says in words why this weight cannot take an entry, or None."""
        problem = problem_of_entry(entry, self.shape)
        if problem is not None:
            return problem
        fields = cast(Entry, entry)
        if fields["recipe"] != self.recipe.name:
            return f"it was saved by recipe {fields['recipe']!r}, and trains by {self.recipe.name!r} now"
        if fields["layout"] != self.layout:
            return f"it was saved in layout {fields['layout']!r}, and is used in {self.layout!r} now"
        if ("scale" in fields) != (self.recipe.soft and "patterns" in fields):
            return "its scale is missing, or belongs to another recipe"
        return problem_of_patterns(fields, self.recipe.pattern_kind, self._pattern_shape())

    def restore(self, entry: Entry) -> None:
        """Takes over an entry that `problem_of` found nothing wrong with."""
        parameter = self.parameter()
        device = None if parameter is None else parameter.device
        with torch.inference_mode(False), torch.no_grad():
            for field in ("patterns", "previous", "scale"):
                value = entry.get(field)
                copied = None if value is None else value.detach().to(device, copy=True)
                held = getattr(self, field)
                if copied is not None and held is not None and held.device == copied.device:
                    held.copy_(copied)  # in place: buffers are static
                else:
                    setattr(self, field, copied)
        self.restore_schedule(entry)
        self._searched_content = None
        self.has_mask = "patterns" in entry
        self.revision += 1

    @property
    def _may_search(self) -> bool:
        """Whether the schedule allows a search now: where nothing was written since the last one, it has no use."""
        return not self.recipe.uses_interval or self.scheduled_age >= self.config.mask_interval

    def _is_mask_of(self, parameter: Tensor) -> bool:
        assert self.patterns is not None
        if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # the host can ask nothing then
        return torch.equal(self._found_patterns(parameter), self.patterns.to(parameter.device))

    def _found_patterns(self, parameter: Tensor) -> Tensor:
        rule = "transposable_patterns" if self.recipe.pattern_kind == "transposable" else "magnitude_patterns"
        found: Tensor = getattr(torch.ops.s24, rule)(self.logical(parameter.detach()))
        return found

    def _pattern_shape(self) -> tuple[int, int]:
        rows, cols = self.shape if self.layout == "out_in" else self.shape[::-1]
        return (rows // 4 if self.recipe.pattern_kind == "transposable" else rows, cols // 4)


def version_of(parameter: Tensor) -> int:
    """The version counter; -1 for a tensor made under inference_mode, which has none."""
    return -1 if parameter.is_inference() else parameter._version


@contextlib.contextmanager
def writing_state(device: torch.device) -> Iterator[None]:
    """Inside, buffers can be made and written that serve any later forward.

    Tensors made under inference_mode cannot be saved for a backward, and autocast would round what masks and
    scales are computed from.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
