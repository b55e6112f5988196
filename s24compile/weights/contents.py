"""What a weight held when it was last packed or stepped, and whether it has been written since, and how.

Nothing tells this alone: fused AdamW moves only the optimizer's tick, `add_` only the version counter, `p.data = x`
only the address or, at an address that was freed, the storage; `p.data.add_(x)` moves none, and shows in the numbers
alone (`weights/sample.py`).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from s24compile.kernels.watch.sample import BITS, sampled
from s24compile.torch_internals.tensors import write_count
from s24compile.weights.sample import HostSample, same_values
from s24compile.weights.schedule import CLOCK
from s24compile.weights.storage_reference import StorageReference

Content = tuple[int, int, int, int, int]
"""(version, data_ptr, number of the storage, writes that nothing showed, tick): equal means that nobody whom we can see
has written the weight in between, if the storage is still there."""

Edit = Literal["moved", "written", "unseen"]
"""A change that no optimizer made: to another storage (`.to()`, `.data = x`), in place, or where nothing shows it."""


class Contents:
    """The contents of one weight, as far as they can be told apart."""

    def __init__(self, parameter: Tensor) -> None:
        self.storage = StorageReference(parameter)
        """What the parameter's storage was when its content was last noted."""
        self.storage_number = 0
        """Moves with `storage`: a data_ptr may be that of an earlier storage, which is gone."""
        self.unseen = 0
        """Writes that nothing showed but other numbers."""
        self.sample: Tensor | HostSample | None = None
        """Elements of the weight as it was last packed; a tensor on a GPU, where `DeviceWatch` compares it."""
        self.asked_again = False
        """Whether a forward has asked for the weight, on a GPU, which needed no pack: others may follow."""
        self.left_by_step = False
        """Whether an optimizer's step has left the weight as it was last known; else a pack has read it since."""
        self.edits_follow_steps = False
        """Whether the training loop edits the weight after each step, as one that normalises it does."""
        self._left: Content | None = None
        self._left_at_turn = 0

    def now(self, parameter: Tensor, tick: int) -> Content:
        """The present content."""
        if not self.storage.is_of(parameter):
            self.storage = StorageReference(parameter)
            self.storage_number += 1
        return version_of(parameter), parameter.data_ptr(), self.storage_number, self.unseen, tick

    def is_asked_again(self) -> bool:
        """Notes that a forward asked for the weight which needed no pack. Whether it lacks a sample, and should not."""
        first, self.asked_again = not self.asked_again, True
        return first and self.sample is None and not self.unseen

    def forget(self) -> None:
        """Notes that nobody knows what the weight held before: the next content is no edit."""
        self._left, self.sample, self.left_by_step = None, None, False

    def is_known(self, content: Content) -> bool:
        """Whether `content` is what was last packed, by all that shows."""
        return self._left == content and not self.left_by_step

    def differs(self) -> bool:
        """Whether elements in the host's memory have changed. Ask only while the content `is_known`."""
        return isinstance(self.sample, HostSample) and self.sample.differs()

    def differs_from(self, parameter: Tensor) -> bool:
        """The same for elements wherever they are, which may wait for the device."""
        before, now = self.sampled, sampled(parameter)
        if isinstance(self.sample, HostSample) or before is None or now is None or _is_capturing(parameter):
            return self.differs()
        bits = BITS[now.element_size()]
        return not torch.equal(before.view(bits), now.view(bits))

    def note_pack(self, content: Content) -> None:
        """Notes what has just been packed."""
        self._left, self.left_by_step, self._left_at_turn = content, False, CLOCK.turn

    def note_step(self, parameter: Tensor, tick: int) -> None:
        """Notes that an optimizer has left the weight as it is now."""
        if self._left is not None:
            self._left = (version_of(parameter), *self._left[1:4], tick)
            self.left_by_step = True

    def edit(self, content: Content) -> Edit | None:
        """How the weight has come to `content` since it was last packed or stepped; None if by nobody but an optimizer,
        or if that is not known."""
        left = self._left
        if left is None or left[4] != content[4]:
            return None
        if left[3] != content[3]:
            return "unseen"
        if left[0] != content[0]:
            return "written"
        return "moved" if left[1:3] != content[1:3] else None

    def is_other(self, parameter: Tensor, edit: Edit) -> bool:
        """Whether an edit, where no optimizer stepped, has given the weight other numbers than it had: a reload, not a
        copy to another place or a cast. May wait for the device."""
        if self.left_by_step:
            # The step has changed the numbers too. Loading writes them; moving a model keeps what the step has left.
            return edit == "written" and not self.edits_follow_steps
        if self._left_at_turn != CLOCK.turn:
            return False  # one of those that follow the steps of others, as a momentum teacher has them
        if edit == "unseen":
            return True
        before, now = self.sampled, sampled(parameter)
        if before is None or now is None or _is_capturing(parameter):
            return edit == "written"
        return not same_values(before, now)

    @property
    def sampled(self) -> Tensor | None:
        """The sampled elements at the last pack, where they were kept."""
        return self.sample.saved if isinstance(self.sample, HostSample) else self.sample

    def inherit(self, other: Contents, parameter: Tensor, tick: int, *, converted: bool) -> None:
        """Takes over what is known of the weight that this one's parameter replaced.

        Args:
            tick: of the present content.
            converted: the new parameter is made of the old one (`.to()`), not given in its place.
        """
        if other._left is not None:
            # Its storage is another, whatever its address; versions of two tensors have nothing to do with each other.
            self._left = (version_of(parameter), 0, -1, self.unseen, tick)
            self.left_by_step = other.left_by_step and converted
            self._left_at_turn = other._left_at_turn
            self.sample = other.sampled


def version_of(parameter: Tensor) -> int:
    """The version counter; -1 for a tensor made under inference_mode, which has none."""
    return -1 if parameter.is_inference() else write_count(parameter)


def _is_capturing(parameter: Tensor) -> bool:
    """Whether launches go into a CUDA graph: the host can ask nothing then."""
    return parameter.is_cuda and torch.cuda.is_current_stream_capturing()
