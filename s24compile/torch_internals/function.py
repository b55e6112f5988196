"""autograd.Functions: whether code runs in the forward of one, and how its backward is run in another way."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.autograd import Function

from s24compile.torch_internals.part import Part, needed

with needed:
    from torch.autograd.function import BackwardCFunction

PARTS = (
    Part(
        "torch.autograd.function.BackwardCFunction",
        "the backward of a checkpoint written as an autograd.Function computes the forward again with dense weights",
    ),
    Part("torch.autograd.Function._backward_cls._forward_cls", "the same"),
    Part("torch._dynamo.eval_frame", "the same: its frames tell where a compiled call begins"),
)
_APPLY_FILE = torch.autograd.function.__file__
_DYNAMO_FILE = os.path.join(os.path.dirname(torch.__file__), "_dynamo", "eval_frame.py")


@dataclasses.dataclass(frozen=True)
class RunningForward:
    """A forward of an autograd.Function that is on the stack."""

    function: type[Function]
    arguments: tuple[Any, ...]
    """Of `apply`: what its backward returns gradients of."""
    context: Any
    """The `ctx` of this call; None where its forward has none, but a `setup_context`."""


def running_forward() -> RunningForward | None:
    """The innermost forward of an autograd.Function around the caller, within the innermost compiled call.

    There is one where the Function is called in a compiled region and Dynamo broke the graph at it, compiling what it
    could of the forward: the backward will run uncompiled. There is none where the forward calls something compiled,
    as that of a reentrant checkpoint does around a compiled layer: its backward calls that again.
    """
    frame: FrameType | None = sys._getframe(1)
    inner: FrameType | None = None
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _DYNAMO_FILE and code.co_name == "compile_wrapper":
            return None
        if code.co_filename == _APPLY_FILE and code.co_name == "apply" and "cls" in frame.f_locals:
            return _running(frame, inner)
        inner, frame = frame, frame.f_back
    return None


def _running(apply: FrameType, forward: FrameType | None) -> RunningForward:
    names = forward.f_code.co_varnames if forward is not None else ()
    first = forward.f_locals.get(names[0]) if forward is not None and names else None
    first = first[0] if isinstance(first, tuple) and first else first  # def forward(*args)
    context = first if isinstance(first, BackwardCFunction) else None
    return RunningForward(apply.f_locals["cls"], tuple(apply.f_locals.get("args", ())), context)


class _Changed:
    """Stands for an autograd.Function where its node asks for its backward."""

    def __init__(self, function: type[Function], change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self._function = function
        for name in ("backward", "vjp"):
            method = getattr(function, name)
            setattr(self, name, method if method is getattr(Function, name) else change(method))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def change_backward(running: RunningForward, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Makes this one call of a Function run `change(backward)` instead of its backward."""
    if not isinstance(running.context._forward_cls, _Changed):
        running.context._forward_cls = _Changed(running.function, change)
