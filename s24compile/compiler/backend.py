"""The `torch.compile` backend: from Dynamo's graph to a callable that trains sparse.

The graph is copied, rewritten by `passes`, given the packed weights as further inputs, lowered and compiled. What
comes back looks up the state of the parameters that arrive in each call: one graph serves many layers and models.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from s24compile.compiler.inner import Compiled
from s24compile.compiler.raising import raising_through_dynamo
from s24compile.compiler.sparse_graph import SparseGraph
from s24compile.config import Config
from s24compile.errors import DecoratorError
from s24compile.torch_internals.compiled import callback_of, compiled_callables, compilers_behind
from s24compile.weights.activation_stats import states_of
from s24compile.weights.model_state import sparse_weights


def s24(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | Config | None = None,
) -> Compiled:
    """Compiles one Dynamo graph with its feed-forward layers 2:4 sparse: `torch.compile(model, backend="s24")`.

    Args:
        gm: what Dynamo captured; never edited.
        example_inputs: real Parameters, tensors, SymInts, or fakes (DDP).
        mode: Inductor's mode, as given to `torch.compile`.
        options: fields of `s24compile.Config`.

    Raises:
        UnknownOptionError, OptionError: an option that is not accepted.
    """
    with raising_through_dynamo():
        backend = again(config_of_call(mode, options))
    return backend(gm, example_inputs)


def config_of_call(mode: str | None, options: Mapping[str, Any] | Config | None) -> Config:
    """The Config that `torch.compile(..., mode=, options=)` asks for."""
    config = options if isinstance(options, Config) else Config.from_options(options)
    return config if mode is None else dataclasses.replace(config, mode=mode)


class ReadsMarks:
    """A backend under which a decorated module is traced through, with a mark on every node, into the one graph."""


class WithOptions(ReadsMarks):
    """`s24` with these options: what it is itself, and what compiles a backward that runs layers again."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        with raising_through_dynamo():
            graph = SparseGraph(gm, example_inputs, self.config, self)
        return lambda *args: graph(*args)


again = functools.cache(WithOptions)
"""Equal options are one backend to Dynamo."""


class SparseFFNBackend(ReadsMarks):
    """The backend of a decorated module's own graphs: `s24`, and an account of whether it ran."""

    __name__ = "s24"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.calls = 0
        """Calls of compiled graphs so far: a forward that does not move it ran outside torch.compile, dense."""
        self.refusals: list[str] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Compiled:
        with raising_through_dynamo():
            graph = SparseGraph(gm, example_inputs, self.config, self, is_decorated=True)
        self.refusals += [site.sentence for site in graph.sites if site.status == "refused"]

        def run(*args: Any) -> Any:
            self.calls += 1
            return graph(*args)

        return run

    def require_sparse(self, module: nn.Module) -> None:
        """Raises DecoratorError unless a weight or a hidden state of `module` has become sparse by now."""
        if not sparse_weights(module) and not states_of(module):
            reasons = "; ".join(self.refusals) or "no feed-forward layer was found in it"
            raise DecoratorError(
                what=type(module).__name__,
                found=f"no layer of it could be made sparse: {reasons}",
                accepted="decorate a module that holds a feed-forward layer; see s24compile.explain(module, *inputs)",
            )


def is_s24_backend(compiler: Any) -> bool:
    """Whether Dynamo's compiler function, through its wrappers, is this backend, or another that reads marks."""
    return any(inside is s24 or isinstance(inside, ReadsMarks) for inside in compilers_behind(compiler))


def is_compiled(module: nn.Module) -> bool:
    """Whether a module, or something that it or its class holds, was compiled with this backend, by its user."""
    compilers = (callback_of(held) for held in compiled_callables(module))
    return any(is_s24_backend(compiler) for compiler in compilers if compiler is not None)
