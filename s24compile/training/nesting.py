"""Which steps are parts of others: an optimizer around another, or a subclass that calls `super().step()`.

Every one of them fires the hooks. The gradients that are used are those that the innermost one steps, and that one is
the step that counts; but when an outer one begins, nobody can know that there will be one inside, or whether this time
(some optimizers step the one in them once in several steps). So it is remembered, for each weight, which optimizers
leave it to others. The first time, what was done for the outer step is not done again for the one in it.
"""

from __future__ import annotations

import sys
import weakref
from types import CodeType, FrameType

from torch import Tensor
from torch.optim import Optimizer

from s24compile.weights.sparse_weight import SparseWeight

_STEP_WRAPPER: CodeType = Optimizer.profile_hook_step(lambda self: None).__code__


_Weights = weakref.WeakSet[SparseWeight]
_INSIDE: weakref.WeakKeyDictionary[Optimizer, dict[int, _Weights]] = weakref.WeakKeyDictionary()
"""(optimizer, how many of its own steps are running already) -> what steps inside that one have stepped."""
_NOTHING: _Weights = weakref.WeakSet()


def left_to_others(optimizer: Optimizer, outer: list[Optimizer]) -> _Weights:
    """The weights that steps inside this one, itself inside those of `outer`, have stepped, now or earlier."""
    levels = _INSIDE.get(optimizer)
    return _NOTHING if levels is None else levels.get(_level(optimizer, outer), _NOTHING)


def note(stepped: list[SparseWeight], outer: list[Optimizer]) -> None:
    """Notes that a step inside those of `outer` has stepped these weights."""
    for place, around in enumerate(outer):
        level = _level(around, outer[place + 1 :])
        _INSIDE.setdefault(around, {}).setdefault(level, weakref.WeakSet()).update(stepped)


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
