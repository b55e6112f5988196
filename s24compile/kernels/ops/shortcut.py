"""Calls of an op that go straight to its kernel, past torch's dispatcher, where nobody in between wants to see them.

The dispatcher takes a Python kernel's arguments apart and puts them together again, and an op that mutates its
arguments passes through three more layers; a training step of a 12-layer GPT makes a hundred such calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.torch_internals.operators import OpOverload, count_dispatch_modes, is_profiling, replace_call

_PLAIN = (Tensor, Parameter)


def shorten(op: OpOverload, run: Callable[..., Any], mutated: Sequence[int] = ()) -> None:
    """Lets `op(...)` call `run` directly.

    Still dispatched as registered: calls under a dispatch mode (fake tensors, tracing), on tensor subclasses, with
    keywords, and while a profiler records, which is to show the op.

    Args:
        mutated: places of the arguments, tensors or lists of them, whose version counters the op moves.
    """

    def shortened(dispatch: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else None
            if type(first) is list and first:
                first = first[0]
            if kwargs or type(first) not in _PLAIN or count_dispatch_modes() or is_profiling():
                return dispatch(*args, **kwargs)
            result = run(*args)
            for place in mutated:
                if args[place] is not None:
                    torch.autograd.graph.increment_version(args[place])
            return result

        return call

    replace_call(op, shortened)
