"""`@sparse_ffn`: the feed-forward layers of one module class or instance train 2:4 sparse.

Called in eager code, a decorated module compiles its own forward with the s24 backend. Inside an outer
`torch.compile(backend="s24")` its forward is traced through, with a mark on every node, so that the outer graph stays
whole and only marked layers are rewritten. Inside any other outer compile it is called out of line (one graph break):
Dynamo would otherwise inline it, and the layers would silently train dense.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, overload

import torch
from torch import nn

from s24compile.compiler.backend import SparseFFNBackend, is_s24_backend
from s24compile.compiler.findings import wanted
from s24compile.config import Config
from s24compile.errors import DecoratorError
from s24compile.graphs.marks import mark
from s24compile.torch_internals.compiled import inner_module
from s24compile.torch_internals.dynamo import constant_result, is_compiled_module, tracing_compiler

M = TypeVar("M", bound="nn.Module | type[nn.Module]")


@overload
def sparse_ffn(target: M, /, **options: Any) -> M: ...
@overload
def sparse_ffn(target: None = None, /, **options: Any) -> Callable[[M], M]: ...
def sparse_ffn(target: Any = None, /, **options: Any) -> Any:
    """Makes the feed-forward layers inside a module 2:4 sparse, compiled or not.

    Use as `@sparse_ffn` or `@sparse_ffn(recipe="sste")` on an `nn.Module` class, or as `sparse_ffn(module, ...)` on an
    instance. Parameters, buffers and `state_dict` keys stay as they are. The cost model is not asked.

    Args:
        target: a module class or a module.
        options: fields of `s24compile.Config`. `include` and `exclude` are searched in a path from any of its modules
            on, so that "^fc1" is the same linear where the module is called alone and inside an outer compile.

    Returns:
        The same class or module.

    Raises:
        DecoratorError: `target` is no module, or is decorated already; and at the first forward, if none of its
            layers could be made sparse.
        UnknownOptionError, OptionError: an option that is not accepted.
    """
    config = Config.from_options({"min_speedup": 0.0, **options})
    if target is None:
        return functools.partial(_decorate, config=config)
    return _decorate(target, config=config)


def _decorate(target: Any, *, config: Config) -> Any:
    is_class = isinstance(target, type) and issubclass(target, nn.Module)
    if not is_class and not isinstance(target, nn.Module):
        raise DecoratorError(
            what=repr(target), found=f"a {type(target).__name__} was given",
            accepted="it takes a subclass of torch.nn.Module or an instance of one",
        )  # fmt: skip
    if is_compiled_module(target):
        raise DecoratorError(
            what=f"torch.compile({type(inner_module(target)).__name__}(...))", found="it is compiled already",
            accepted="decorate the module, which compiles itself or is then compiled as a part of another: "
            "torch.compile(sparse_ffn(module)); or, without decorating, torch.compile(module, backend='s24')",
        )  # fmt: skip
    name = target.__name__ if is_class else type(target).__name__
    if hasattr(target.forward, "s24_config"):  # its own, its class's or inherited
        raise DecoratorError(what=name, found="it is decorated already", accepted="decorate it once, with all options")
    wrapped = _sparse_forward(target.forward if is_class else type(target).forward, config)
    if is_class:
        target.forward = wrapped
    else:
        # An instance attribute shadows the method of the class for this module alone.
        target.forward = types.MethodType(wrapped, target)
        # By itself, a bound method pickles as the class's own method of that name: the dense one.
        target.__reduce_ex__ = functools.partial(_reduce, target, config)
    return target


def _reduce(module: nn.Module, config: Config, protocol: int) -> tuple[Any, ...]:
    """`module.__reduce_ex__(protocol)` of a decorated instance: what is loaded, or deep-copied, is decorated anew."""
    reduced: Any = type(module).__reduce_ex__(module, protocol)
    make, given, *rest = reduced
    if rest and isinstance(rest[0], dict):
        rest[0] = {name: value for name, value in rest[0].items() if name not in ("forward", "__reduce_ex__")}
    return (_made_and_decorated, (config, make, given), *rest)


def _made_and_decorated(config: Config, make: Callable[..., nn.Module], given: tuple[Any, ...]) -> nn.Module:
    module: nn.Module = _decorate(make(*given), config=config)
    return module


def _sparse_forward(forward: Callable[..., Any], config: Config) -> Callable[..., Any]:
    """`forward(self, ...)` of a class, as one that is sparse wherever it is called from."""
    backend = SparseFFNBackend(config)
    label = mark(config)

    def marked(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.fx.traceback.annotate(label):
            return forward(self, *args, **kwargs)

    # Dynamo counts recompilations by code object: that of each decoration is its own.
    own = types.FunctionType(marked.__code__.replace(), marked.__globals__, "marked", None, marked.__closure__)
    compiled = torch.compile(own, backend=backend)
    seen: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    @torch.compiler.disable(
        reason="a module decorated with sparse_ffn compiles itself: compile the rest around it with backend='s24', or "
        "without fullgraph=True"
    )
    def own_graph(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls = backend.calls
        out = compiled(self, *args, **kwargs)
        if backend.calls == calls:
            raise DecoratorError(
                what=type(self).__name__, found="torch.compile ran it uncompiled, so it would train dense",
                accepted="check TORCHDYNAMO_DISABLE, the compiler stance, and the recompile limit "
                "(torch._dynamo.config.recompile_limit) in the log of TORCH_LOGS=recompiles",
            )  # fmt: skip
        if self not in seen and wanted() is None:
            backend.require_sparse(self)
            seen.add(self)
        return out

    @functools.wraps(forward)
    def sparse(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _is_exporting():
            raise DecoratorError(
                what=type(self).__name__, found="torch.export would record the dense forward",
                accepted="s24compile.bake_(model) writes the masked weights; export an undecorated module with them",
            )  # fmt: skip
        if torch.compiler.is_dynamo_compiling() and _outer_compiler_is_s24():
            return marked(self, *args, **kwargs)
        return own_graph(self, *args, **kwargs)

    sparse.s24_config = config  # type: ignore[attr-defined]
    return sparse


@constant_result
def _is_exporting() -> bool:
    """Asked for by Python while Dynamo traces: torch 2.11's Dynamo would say True of any compilation."""
    return torch.compiler.is_exporting()


@constant_result
def _outer_compiler_is_s24() -> bool:
    """Which backend is tracing us; runs while Dynamo traces, so the answer is a constant of the graph."""
    return is_s24_backend(tracing_compiler())
