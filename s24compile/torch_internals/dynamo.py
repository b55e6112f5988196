"""Dynamo: what an error must be to come through it, stances, locks, and what a compiled callable was compiled with.

Nothing here imports `torch._dynamo` when it is imported itself: that takes more than a second.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from s24compile.torch_internals.part import NEWEST, Part, needed

PARTS = (
    Part("torch._dynamo.exc.ShortenTraceback", "our errors reach the user inside a BackendCompilerFailed"),
    Part("torch._dynamo.exc.UncapturedHigherOrderOpError", "suppress_errors swallows a wrong option: dense, silently"),
    Part("torch._dynamo.config.suppress_errors", "nobody says that a suppressed error leaves a graph dense"),
    Part("torch._dynamo.symbolic_convert.InstructionTranslator.current_tx", "a decorated module cannot tell which "
         "backend traces it, nor an error whether the graph may break"),
    Part("torch._dynamo.convert_frame.compile_lock", "threads that compile at once patch nn.Module for each other"),
    Part("torch.compiler._compile_session_context", "a thread that calls its model while another one lowers a backward "
         "is told that it traces a compiled function", (NEWEST,)),
    Part("torch._dynamo.eval_frame._stance", "a planned phase fails under set_stance('fail_on_recompile')"),
    Part("torch._dynamo.eval_frame.skip_code", "the backward of an autograd.Function is traced instead of what it "
         "calls"),
    Part("torch._dynamo.OptimizedModule", "a compiled module is decorated, and then compiled twice"),
    Part("torch._dynamo.mark_static", "a phase that is compiled later has more symbols than the first"),
    Part("torch._dynamo.assume_constant_result", "Dynamo traces the question which backend traces"),
    Part("torch._dynamo.backends.registry._COMPILER_FNS", "the first torch.compile(backend='s24') of two threads "
         "fails: both register the name"),
    Part("torch._dynamo.backends.registry._BACKENDS", "a backend whose entry point was loaded twice is not found"),
)  # fmt: skip

E = TypeVar("E", bound=BaseException)
F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def passing_class(kind: type[E], *, unsuppressed: bool) -> type[E]:
    """A subclass of an exception that Dynamo hands to the user as it is, instead of inside an error of its own.

    Args:
        unsuppressed: also where `torch._dynamo.config.suppress_errors` asks for a dense, eager run instead.
    """
    with needed:
        from torch._dynamo.exc import ShortenTraceback, UncapturedHigherOrderOpError

    bases = (ShortenTraceback, UncapturedHigherOrderOpError) if unsuppressed else (ShortenTraceback,)
    return type(kind.__name__, (kind, *bases), {"__module__": kind.__module__})


def passing(error: E, *, unsuppressed: bool) -> E:
    """An error of `passing_class`, with the arguments and attributes of `error`."""
    with needed:
        from torch._dynamo.exc import ShortenTraceback

    given: Any = type(error)
    kind: Any = passing_class(given, unsuppressed=unsuppressed)
    made = kind.__new__(kind, *error.args)
    # Torch's own constructor alone, for what Dynamo reads of its errors; next to ours in line, it misses arguments.
    ShortenTraceback.__init__(made, *error.args, first_useful_frame=None)
    made.__dict__.update(error.__dict__)
    return made  # type: ignore[no-any-return]


def suppresses_errors() -> bool:
    """Whether a graph that cannot be compiled runs eagerly, with a warning."""
    with needed:
        from torch._dynamo import config

    return bool(config.suppress_errors)


def constant_result(function: F) -> F:
    """Marks a function for Dynamo to run while it traces, and to take its result as a constant.

    What `torch.compiler.assume_constant_result` does, which would import Dynamo for it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def must_not_break() -> bool:
    """Whether Dynamo is tracing with `fullgraph=True`. Ask in a `constant_result` alone.

    Also before torch 2.13: 2.11 breaks the graph at a `raise`, and then fails there with an error of its own.
    """
    with needed:
        from torch._dynamo.symbolic_convert import InstructionTranslator

    tx = InstructionTranslator.current_tx()
    return bool(tx.one_graph or tx.error_on_graph_break) or torch.__version__ < "2.13"


def tracing_compiler() -> Any:
    """The compiler function that Dynamo's present trace is for. Ask in a `constant_result` alone."""
    with needed:
        from torch._dynamo.symbolic_convert import InstructionTranslator

    return InstructionTranslator.current_tx().output.compiler_fn


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """What Dynamo holds while it compiles, for what AOTAutograd compiles later: the backward graph, at its first run.

    Tracing patches nn.Module for the whole process: one thread at a time, and the others must know that it is one.
    """
    with needed:
        from torch._dynamo.convert_frame import compile_lock

    session = getattr(torch.compiler, "_compile_session_context", contextlib.nullcontext)
    with compile_lock, session():
        yield


def forbids_compiling() -> bool:
    """Whether `torch.compiler.set_stance("fail_on_recompile")` holds."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and dynamo._stance.stance == "fail_on_recompile"


def compiled_inside(function: Callable[..., Any], backend: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as it is, but for the functions that it calls: those are compiled."""
    with needed:
        from torch._dynamo.eval_frame import skip_code

    if isinstance(function, types.FunctionType):
        # By code object: a copy, so that the user's own may be compiled as ever.
        made = types.FunctionType(
            function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__,
            function.__closure__,
        )  # fmt: skip
        made.__kwdefaults__ = function.__kwdefaults__
        skip_code(made.__code__)
        function = made
    compiled: Callable[..., Any] = torch.compile(function, backend=backend)
    return compiled


def mark_static(tensor: torch.Tensor, dims: list[int]) -> None:
    """Lets Dynamo make no symbol of the sizes of these dims."""
    torch._dynamo.mark_static(tensor, dims)


def is_compiled_module(module: object) -> bool:
    """Whether `torch.compile(module)` returned it."""
    return isinstance(module, torch._dynamo.OptimizedModule)


def register_again(name: str, value: str) -> None:
    """Lets `torch.compile(backend=name)` register a backend that is registered already.

    Args:
        value: of the entry point, "module:attribute".

    Torch loads an entry point at the first use of its name, without a lock: the second of two threads that do so at
    once finds the name taken, and fails. Whoever else loads the entry point does not register: torch then has to find
    it once more.
    """
    with needed:
        from torch._dynamo.backends import registry

    if registry._COMPILER_FNS.pop(name, None) is not None:
        # Nothing slow here: the thread that has popped the name is to register it before another one looks.
        registry._BACKENDS[name] = importlib.metadata.EntryPoint(name, value, "torch_dynamo_backends")
