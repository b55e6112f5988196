"""Layers in the forward of an autograd.Function that Dynamo could not trace as a whole.

Dynamo then breaks the graph at the Function and compiles what it can of the forward, which runs under no_grad. The
backward it never sees: that runs as it is written. Two kinds are told apart by what the Function is given:

* The weights are no arguments of it, so its backward can reach them only by running the layers again, as a checkpoint
  does (Megatron, DeepSpeed, tiled MLPs). Then what the backward calls is compiled too, with the same options, so that
  both runs are 2:4.
* The weights are arguments, so that its backward returns their gradients, by formulas of its own with dense weights.
  Such layers stay dense, for a reason that `explain` shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from s24compile.errors import ModelError
from s24compile.torch_internals.dynamo import compiled_inside
from s24compile.torch_internals.function import RunningForward, change_backward, running_forward

FORMULA_SENTENCE = "it is an argument of the autograd.Function `{name}`, whose own backward computes with all of it"
NO_CONTEXT_SENTENCE = (
    "it is in the forward of the autograd.Function `{name}`, whose backward cannot be followed because it has a "
    "setup_context: write forward(ctx, ...) instead, or compile the layer itself"
)


def sentence_of(parameter: torch.nn.Parameter, running: RunningForward) -> str:
    """Why a weight stays dense in a graph that is compiled inside this forward; "" if it need not."""
    name = running.function.__name__
    if any(parameter is argument for argument in running.arguments):
        return FORMULA_SENTENCE.format(name=name)
    has_context = running.function.setup_context is torch.autograd.Function.setup_context
    return "" if has_context else NO_CONTEXT_SENTENCE.format(name=name)


class Recomputation:
    """What the calls of one compiled graph do inside forwards of autograd.Functions."""

    def __init__(self, backend: Callable[..., Any]) -> None:
        self.backend = backend
        """Compiles what a backward calls."""
        self._changed: dict[Callable[..., Any], Callable[..., Any]] = {}

    def follow(self, args: Sequence[Any], weights: Iterable[int]) -> None:
        """Lets the backward of the Function that encloses this call, if one does, run what it calls compiled.

        Args:
            args: of the call.
            weights: at which of them weights arrive that are 2:4.

        Raises:
            ModelError: the backward has formulas of its own, and the graph is one that was compiled elsewhere.
        """
        running = running_forward()
        if running is None:
            return
        sentences = (sentence_of(args[place], running) for place in weights)
        sentence = next(filter(None, sentences), "")
        if sentence or running.context is None:
            raise ModelError(
                what=f"a layer that trains 2:4 elsewhere is called by {running.function.__name__}",
                found=sentence or NO_CONTEXT_SENTENCE.format(name=running.function.__name__),
                accepted="leave it dense there by exclude=<its path>, or call it outside of the Function",
            )
        change_backward(running, self._compiled)

    def _compiled(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        if backward not in self._changed:
            self._changed[backward] = compiled_inside(backward, self.backend)
        return self._changed[backward]
