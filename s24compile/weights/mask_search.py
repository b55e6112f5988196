"""When the mask of a weight is searched anew, and what is known of the contents that it is of.

* At the first forward, and when the interval is over (a row-wise mask: when the weight was stepped or edited).
* A forward without gradients, or of a frozen weight, also searches where the weight was edited and no optimizer stepped
  since (`load_state_dict`, another storage with other numbers, a write through `.data`): the mask was that of contents
  which are gone. Edits between which optimizers step, those of a momentum teacher, wait for the end of the interval.
* No evaluation changes a training. Of a weight that trains, the mask and its age are set aside for the search of a
  forward without gradients, and come back with the next forward that trains.
* A forward that trains keeps the mask for the rest of its interval, whatever edits the weight. If the weight was edited
  before an optimizer has stepped it at all under its mask (weights loaded after a first forward), the interval ends
  with the first step.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.config import Config
from s24compile.weights.contents import Content, Contents
from s24compile.weights.mask import WeightMask
from s24compile.weights.operand_request import WeightLayout
from s24compile.weights.schedule import CLOCK
from s24compile.weights.sharding import Shard, local


@dataclasses.dataclass(frozen=True)
class Aside:
    """The mask of the training, while evaluations use others."""

    patterns: Tensor
    previous: Tensor | None
    searched_at: tuple[int, int]
    content: Content | None
    search_after_step: bool


class SearchedMask(WeightMask):
    """The mask of a weight over its schedule and its contents."""

    def __init__(
        self,
        parameter: Parameter,
        config: Config,
        layout: WeightLayout,
        shape: tuple[int, ...] | None = None,
        shard: Shard | None = None,
    ) -> None:
        super().__init__(parameter, config, layout, shape, shard)
        self.contents = Contents(local(parameter))
        self.edits = 0
        """Edits that a forward which trains has found, while no optimizer stepped."""
        self._search_demanded = False
        self._search_after_step = False
        self._searched_content: Content | None = None
        self._aside: Aside | None = None

    @property
    def awaits_training(self) -> bool:
        """Whether the mask is an evaluation's, and the next forward that trains brings the training's back."""
        return self._aside is not None

    def content(self, parameter: Tensor) -> Content:
        """What tells one content of the weight from the next.

        Args:
            parameter: the master.
        """
        return self.contents.now(local(parameter), self._tick_of(parameter))

    @property
    def present_content(self) -> Content:
        """`content` of the weight's own parameter, which the caller holds alive."""
        return self.content(cast(Parameter, self.parameter()))

    def stored(self) -> Tensor | None:
        """The plain tensor in which this process holds the weight, or its part of it; None where that is gone."""
        parameter = self.parameter()
        return None if parameter is None else local(parameter)

    @property
    def takes_gradient(self) -> bool:
        """Whether it is trained, not frozen."""
        parameter = self.parameter()
        return parameter is not None and parameter.requires_grad

    def search_due(self, parameter: Tensor, content: Content, *, training: bool) -> bool:
        """Whether the forward that is about to come must search the mask anew [FST 5.3: every l steps; and above].

        A mask whose weight is not known (restored, inherited, refreshed) is compared with what a search finds, at the
        price of one host sync: only so does an unchanged weight keep its age and flip rate, and a changed one not keep
        its mask.

        Args:
            parameter: what graphs multiply by.
            training: whether that forward is with gradients, and the weight takes one.
        """
        if not self.has_mask or self._search_demanded:
            return True
        if self._search_after_step and self.scheduled_age > 0:
            return True
        if not self._may_search:
            return not training and self._is_other(parameter, content)
        if self.config.freshness == "always":
            return True
        if self._searched_content is not None:
            return content != self._searched_content
        # What trains has been stepped since; what is frozen has an age all the same.
        return (self.scheduled_age > 0 and self.takes_gradient) or not self._is_mask_of(parameter)

    def find_unseen_write(self) -> bool:
        """Whether the weight, of which all that shows is as it was packed, has other numbers. Then its content moves.

        Answered for weights in the host's memory; `DeviceWatch` looks at the others.
        """
        if not self.contents.differs():
            return False
        self.note_unseen_write()
        return True

    def note_unseen_write(self) -> None:
        """Moves the content."""
        self.contents.unseen += 1
        CLOCK.moves += 1

    def note_step(self) -> None:
        """Notes that an optimizer has left the weight as it is now."""
        parameter = self.parameter()
        if parameter is not None:
            self.contents.note_step(local(parameter), self._tick_of(parameter))

    def begin_pack(self, parameter: Tensor, content: Content, *, training: bool) -> bool:
        """Settles which mask a pack is to use: that of the training comes back, or is set aside.

        Returns: whether the pack must search.
        """
        if training:
            self._take_back()
            self._note_edit(parameter, content)
        due = self.search_due(parameter, content, training=training)
        if due and not training and not self._search_demanded:
            self._set_aside()
        return due

    def next_patterns(self, parameter: Tensor) -> Tensor:
        """The patterns of the next sparse forward: `self.patterns`, or new ones where it will search.

        Changes nothing, so that whoever reads the weight before that forward sees what it will compute with.
        """
        if self.contents.is_known(self.present_content) and self.contents.differs_from(parameter):
            self.note_unseen_write()
        if self.patterns is None or self.search_due(parameter, self.present_content, training=False):
            return self.found_patterns(parameter)
        return self.patterns.to(parameter.device)

    def search_if_due(self, parameter: Tensor) -> None:
        """Does now the search of the next forward, if it has one to do. Needs `prepare`."""
        assert self.patterns is not None
        patterns = self.next_patterns(parameter)
        if patterns is not self.patterns:
            self.remember_patterns()
            self.patterns.copy_(patterns)
            self.searched(self.present_content)

    def searched(self, content: Content) -> None:
        """Notes that the mask now is that of `content`."""
        self.note_search()
        self._searched_content = content
        self.has_mask, self._search_demanded, self._search_after_step = True, False, False
        self.touch()

    def met(self, content: Content) -> None:
        """Notes that a pack did not search; where it might have, the mask is that of `content`."""
        if self._searched_content is None and self._may_search:
            self._searched_content = content

    def baked(self) -> None:
        """Notes that the parameter is now what its mask keeps: that mask is the training's too."""
        self._aside = None
        self._searched_content = self.present_content
        self.contents.forget()

    def search_overdue(self, content: Content) -> bool:
        """Whether the interval of a mask is over that is of another content, or nobody knows of which."""
        # At each forward of a frozen weight: mostly the first comparison decides.
        return content != self._searched_content and self.has_mask and self.recipe.uses_interval and self._may_search

    def forget_contents(self) -> None:
        """Notes that the weight may have been written where nothing shows: whose mask this is, is not known."""
        self._searched_content = None
        self.contents.forget()
        CLOCK.moves += 1

    def demand_search(self) -> None:
        """Makes the next pack search, whatever the schedule says."""
        self._search_demanded = True
        CLOCK.moves += 1

    def _tick_of(self, parameter: Tensor) -> int:
        # An optimizer that we cannot connect with this object may own it all the same: sharded optimizers step shards
        # and hand out gathered parameters. So any optimizer's step counts for a parameter that none is seen to hold.
        return self.tick if self.held or not parameter.requires_grad else CLOCK.tick

    @property
    def _may_search(self) -> bool:
        """Whether the schedule allows a search now: where nothing was written since the last one, it has no use."""
        return not self.recipe.uses_interval or self.scheduled_age >= (self.config.mask_interval or 1)

    def _is_mask_of(self, parameter: Tensor) -> bool:
        assert self.patterns is not None
        if parameter.is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # the host can ask nothing then
        return torch.equal(self.found_patterns(parameter), self.patterns.to(parameter.device))

    def _is_other(self, parameter: Tensor, content: Content) -> bool:
        """Whether an edit gave the weight other numbers; see `Contents.is_other`."""
        edit = self.contents.edit(content)
        return edit is not None and self.contents.is_other(parameter, edit)

    def _note_edit(self, parameter: Tensor, content: Content) -> None:
        """Notes what a forward that trains finds of edits."""
        contents = self.contents
        edit = contents.edit(content)
        if contents.left_by_step:
            contents.edits_follow_steps = edit == "written"
        if edit is None:
            return
        self.edits += 1
        # What nothing shows is found a little later on one rank than on another: it must not move the schedule.
        if edit != "unseen" and self.scheduled_age == 0 and contents.is_other(parameter, edit):
            self._search_after_step = True

    def _set_aside(self) -> None:
        """Before a search for an evaluation alone: keeps the mask of a weight that trains, with its age."""
        if self._aside is not None or not (self.recipe.uses_interval and self.ever_held and self.has_mask):
            return
        assert self.patterns is not None
        previous = None if self.previous is None else self.previous.clone()
        self._aside = Aside(
            self.patterns.clone(), previous, self.searched_at, self._searched_content, self._search_after_step
        )

    def _take_back(self) -> None:
        if self._aside is None:
            return
        assert self.patterns is not None
        self.patterns.copy_(self._aside.patterns)
        self.previous = self._aside.previous
        self.searched_at, self._searched_content = self._aside.searched_at, self._aside.content
        self._search_after_step = self._aside.search_after_step
        self._aside = None
        self.touch()
