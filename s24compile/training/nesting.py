"""Which steps are parts of others: an optimizer around another, or a subclass that calls `super().step()`.

Every one of them fires the hooks. The gradients that are used are those that the innermost one steps, and that one is
the step that counts; but when an outer one begins, nobody can know that there will be one inside. So it is remembered
from the step before, for each weight, and the first time what was done for the outer one is not done again.
"""

from __future__ import annotations

import sys
import weakref
from types import CodeType, FrameType

from torch import Tensor
from torch.optim import Optimizer

from s24compile.weights.sparse_weight import SparseWeight

_STEP_WRAPPER: CodeType = Optimizer.profile_hook_step(lambda self: None).__code__


class Step:
    """The steps of an optimizer that begin while `level` of its own are running already (`super().step()`)."""

    def __init__(self) -> None:
        self.inside: weakref.WeakSet[SparseWeight] = weakref.WeakSet()
        """The weights that steps inside the last one have stepped."""
        self.stepped: weakref.WeakSet[SparseWeight] = weakref.WeakSet()
        """Those that steps inside the present one have stepped so far."""


_STEPS: weakref.WeakKeyDictionary[Optimizer, dict[int, Step]] = weakref.WeakKeyDictionary()
_NOTHING = Step()


def step_of(optimizer: Optimizer, outer: list[Optimizer]) -> Step:
    """What is known of a step of this optimizer inside those of `outer`; not to be written to."""
    levels = _STEPS.get(optimizer)
    return _NOTHING if levels is None else levels.get(_level(optimizer, outer), _NOTHING)


def begin(optimizer: Optimizer, outer: list[Optimizer]) -> None:
    """Forgets a step that was left by an exception."""
    step_of(optimizer, outer).stepped.clear()


def end(optimizer: Optimizer, outer: list[Optimizer], stepped: list[SparseWeight]) -> None:
    """Notes that a step is over, for the steps around it, and for the next one."""
    for place, around in enumerate(outer):
        level = _level(around, outer[place + 1 :])
        _STEPS.setdefault(around, {}).setdefault(level, Step()).stepped.update(stepped)
    step = step_of(optimizer, outer)
    if step is not _NOTHING:
        step.inside, step.stepped = step.stepped, weakref.WeakSet()


def outer_steps() -> list[Optimizer]:
    """The optimizers whose step() is on the stack, innermost first, but for that which calls our hook.

    Asked of the Python stack, not of a flag, which a step that raised would leave set for ever.
    """
    steps: list[Optimizer] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # By name: Dynamo runs compiled frames with code objects of its own.
        code = frame.f_code
        if code.co_name == _STEP_WRAPPER.co_name and code.co_filename == _STEP_WRAPPER.co_filename:
            owner = frame.f_locals.get("self")
            if isinstance(owner, Optimizer):
                steps.append(owner)
        frame = frame.f_back
    return steps[1:]


class Decayed:
    """The gradients that have been decayed in the outermost step that is running."""

    def __init__(self) -> None:
        self._gradients: dict[int, weakref.ref[Tensor]] = {}

    def clear(self) -> None:
        """Begins an outermost step."""
        self._gradients.clear()

    def add(self, gradient: Tensor) -> None:
        self._gradients[id(gradient)] = weakref.ref(gradient)

    def __contains__(self, gradient: Tensor) -> bool:
        found = self._gradients.get(id(gradient))
        return found is not None and found() is gradient


def _level(optimizer: Optimizer, outer: list[Optimizer]) -> int:
    return sum(around is optimizer for around in outer)
