"""The state of one sparse weight: its mask, over its schedule and its contents. `registry.py` says which Parameter has
which.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.weights.checkpoint import FORMAT, Entry, problem_of_entry, problem_of_patterns
from s24compile.weights.mask_search import SearchedMask
from s24compile.weights.operand_request import WeightLayout
from s24compile.weights.sharding import Shard, local


class SparseWeight(SearchedMask):
    """The live state of one 2:4 weight. Read it through `s24compile.sparse_weights(model)`; the package writes it."""

    def __init__(
        self,
        parameter: Parameter,
        config: Config,
        name: str,
        layout: WeightLayout,
        shape: tuple[int, ...] | None = None,
        shard: Shard | None = None,
    ) -> None:
        """
        Args:
            parameter: the master, see `weights/sharding.py`.
            shape: of the tensor that graphs multiply by; None: that of the parameter.
            shard: which part of that tensor the parameter holds in this process; None: all of it.
        """
        super().__init__(parameter, config, layout, shape, shard)
        self.name = name
        self._decay: float | None = None
        self.packed_at = 0
        """CLOCK.tick at the last pack: not before `tick`, if the forward since then was a sparse one."""
        self.load: Any = None
        """The last loading of a state for it, a `registry.Load`."""
        self.warned = False
        """Whether it has been said that this weight trained on a dense forward."""
        self.said_unheld = False
        """Whether it has been said that no optimizer holds it."""
        self.owner_sought = False
        """Whether it was looked for the module that holds it, see `weights/following.py`."""

    def __repr__(self) -> str:
        return (
            f"SparseWeight({self.name!r}, {self.recipe.name}, {list(self.shape)}, {self.phase}, steps={self.steps}, "
            f"age={self.age})"
        )

    @property
    def decay(self) -> float:
        """Lambda in use: Config's, until another is assigned, which takes no new compilation. Checkpoints keep it.

        Raises:
            OptionError: on assignment, what `Config.decay` does not take either.
        """
        return (self.config.decay or 0.0) if self._decay is None else self._decay

    @decay.setter
    def decay(self, value: float) -> None:
        checked = dataclasses.replace(self.config, decay=value).decay
        self._decay = None if checked is None or checked == self.config.decay else float(checked)

    def entry(self) -> Entry:
        """A snapshot for a checkpoint, see `weights/checkpoint.py`: of the training, whatever evaluations use now.
        Tensors are copies."""
        aside, searched_at = self._aside, self.searched_at
        if aside is not None:
            self.searched_at = aside.searched_at
        entry: Entry = {
            "format": FORMAT,
            "recipe": self.recipe.name,
            "layout": self.layout,
            "shape": list(self.shape),
            **self.schedule_entry(),
        }
        self.searched_at = searched_at
        if self._decay is not None:
            entry["decay"] = self._decay
        patterns, previous = (aside.patterns, aside.previous) if aside is not None else (self.patterns, self.previous)
        with torch.inference_mode(False), torch.no_grad():
            for field, value in (("patterns", patterns), ("previous", previous), ("scale", self.scale)):
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
        return problem_of_patterns(fields, self.recipe.pattern_kind, self.pattern_shape)

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
        self._decay = entry.get("decay")
        self._aside, self._search_after_step = None, False
        self.has_mask = "patterns" in entry
        self.forget_contents()
        self.touch()

    def inherit(self, other: SparseWeight, parameter: Tensor, *, converted: bool) -> None:
        """Takes over the state of the weight whose Parameter this one's has replaced; see `Contents.inherit`."""
        self.restore(other.entry())
        self.contents.inherit(other.contents, local(parameter), self._tick_of(parameter), converted=converted)
