"""`explain()`: what `torch.compile(model, backend="s24")` would rewrite and refuse, without changing the model."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from s24compile.compiler.backend import WithOptions, is_compiled
from s24compile.compiler.findings import Findings, collecting
from s24compile.config import Config
from s24compile.errors import ModelError
from s24compile.report import Report
from s24compile.torch_internals.compiled import inner_module, uncompiled
from s24compile.training.random_state import RandomState


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Report:
    """Captures `model(*args, **kwargs)` with Dynamo and reports on every feed-forward layer in it.

    The model runs as it is: whatever of it is compiled with the s24 backend, as a whole, in place, by parts, or by a
    decorated method or function, says what it holds, with its own options. A model of which nothing is compiled so is
    explained as if all of it were, with the default options (those of decorated modules for their layers).

    A dense forward runs for that, in the model's present train/eval and grad mode, and a second one where nothing is
    compiled; buffers and the random state of torch, Python and NumPy are put back after each. No sparse state is
    created. What Dynamo captures here serves the training that follows.

    Args:
        model: a module, compiled or not.
        args, kwargs: example inputs of its forward.

    Returns:
        A `Report`; `str(report)` is a table with a reason for each layer.

    Raises:
        ModelError: `model` is no module.
    """
    return explain_with(model, args, kwargs, None)


def explain_with(model: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], config: Config | None) -> Report:
    """`explain`; with options given, as if the whole model, and nothing else, were compiled with them."""
    if not isinstance(model, nn.Module):
        raise ModelError(
            what="explain", found=f"a {type(model).__name__} was given",
            accepted="give it the torch.nn.Module and example inputs: explain(model, *args, **kwargs)",
        )  # fmt: skip
    if config is None:
        findings = _look(model, lambda: model(*args, **kwargs))
        if any(is_compiled(module) for module in model.modules()) or not findings.are_of_decorated:
            return findings.report()
    inner = inner_module(model)
    with uncompiled(inner):
        whole = _compile_apart(inner, WithOptions(config or Config()))
        return _look(inner, lambda: whole(*args, **kwargs)).report()


def _look(model: nn.Module, run: Callable[[], object]) -> Findings:
    findings = Findings(model)
    with _untouched(model), collecting(findings):
        run()
    return findings


def _compile_apart(call: Callable[..., Any], backend: WithOptions) -> Callable[..., Any]:
    """`call`, compiled without using up what Dynamo allows each function: eight compilations, and then it runs eagerly.

    Torch before 2.13 cannot tell them apart: there many different explanations leave fewer for training.
    """
    apart: dict[str, Any] = {"isolate_recompiles": True} if _CAN_ISOLATE else {}
    compiled: Callable[..., Any] = torch.compile(call, backend=backend, **apart)
    return compiled


_CAN_ISOLATE = "isolate_recompiles" in inspect.signature(torch.compile).parameters


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts random state and buffers (running statistics) back after a forward."""
    drawn = RandomState()
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        drawn.restore()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
