"""Where on a model its parameters stand: a module, and a name in it. A leaf.

`Module.to_empty`, and every conversion that torch cannot do in place (from "meta", or under
`torch.__future__.set_overwrite_module_params_on_conversion`), makes new Parameters and tells nobody. What hung on the
old ones is found again by the place where both have stood.
"""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter

V = TypeVar("V")


@dataclasses.dataclass
class _Resident(Generic[V]):
    parameter: weakref.ref[Parameter]
    state: V


class Places(Generic[V]):
    """Place -> the Parameter that was seen there last, and its state, which outlives it. Entries go with the module."""

    def __init__(self) -> None:
        self._residents: weakref.WeakKeyDictionary[Module, dict[str, _Resident[V]]] = weakref.WeakKeyDictionary()

    def note(self, module: Module, name: str, parameter: Parameter, state: V) -> None:
        """Notes that a Parameter with some state stands there."""
        self._residents.setdefault(module, {})[name] = _Resident(weakref.ref(parameter), state)

    def left_at(self, module: Module, name: str, parameter: Parameter) -> V | None:
        """The state of the Parameter which this one has replaced there; None if it has replaced none."""
        residents = self._residents.get(module)
        before = None if residents is None else residents.get(name)
        return None if before is None or before.parameter() is parameter else before.state

    def left_for(self, parameter: Tensor, gathered: Tensor | None = None) -> V | None:
        """The same for a Parameter of which nobody knows where it stands.

        Args:
            gathered: what FSDP2 puts in its place for a forward.
        """
        for module, residents in list(self._residents.items()):
            for name, before in residents.items():
                held = module._parameters.get(name)
                if held is not None and (held is parameter or held is gathered) and before.parameter() is not parameter:
                    return before.state
        return None


_OURS = tuple(str(Path(package.__file__ or "").parent) for package in (torch, sys.modules["s24compile"]))


def modules_of_callers() -> Iterator[Module]:
    """The modules among the local variables of the function that was compiled and of those around it in torch.

    A compiled graph gets parameters and no model; but the function that called it holds that. Those above are not
    asked: to read the variables of a function that goes on running keeps them alive (before Python 3.13).
    """
    found: set[int] = set()
    users = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        users += not frame.f_code.co_filename.startswith(_OURS)
        if users > 1:
            return
        for value in list(frame.f_locals.values()):
            if isinstance(value, Module) and id(value) not in found:
                found.add(id(value))
                yield value
        frame = frame.f_back
