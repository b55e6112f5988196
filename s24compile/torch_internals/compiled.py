"""Compiled callables: which compiler function stands behind what `torch.compile` returned or left on a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any

from torch import nn

from s24compile.torch_internals.part import Part

COMPILED = "_orig_mod"
"""Where a module that `torch.compile` returned holds the one it was given; its parameters' names begin with it."""
_COMPILED = "torch.compile(torch.nn.Linear(1, 1), backend='eager')"
_FUNCTION = "torch.compile(lambda x: x, backend='eager')"
PARTS = (
    Part("torch._dynamo.OptimizedModule.dynamo_ctx", "nobody knows the options of torch.compile(model)",
         on_instances=_COMPILED),
    Part("torch._dynamo.OptimizedModule._orig_mod", "names of a compiled model's weights have a prefix",
         on_instances=_COMPILED),
    Part("torch._dynamo.eval_frame._TorchDynamoContext.callback", "the same",
         on_instances=_COMPILED + ".dynamo_ctx"),
    Part("torch.nn.Module._compiled_call_impl", "nobody knows the options of model.compile()"),
    Part("torch.nn.Module._call_impl", "explain cannot run what model.compile() compiles"),
    Part("function._torchdynamo_orig_callable", "nobody knows what m.forward = torch.compile(m.forward) has compiled",
         on_instances=_FUNCTION),
    Part("torch._dynamo.convert_frame.ConvertFrame._torchdynamo_orig_backend", "the same",
         on_instances=_COMPILED + ".dynamo_ctx.callback"),
)  # fmt: skip


def callback_of(made: object) -> Any:
    """Dynamo's callback of something that `torch.compile` returned, or a method of it; None of anything else."""
    context = getattr(made, "dynamo_ctx", None) if isinstance(made, nn.Module) else None
    if context is not None:
        return getattr(context, "callback", None)
    function = made.__func__ if isinstance(made, MethodType) else made
    if not isinstance(function, FunctionType) or not hasattr(function, "_torchdynamo_orig_callable"):
        return None
    # torch keeps no public way from a compiled function to its backend.
    free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return free["callback"].cell_contents if "callback" in free else None


def compilers_behind(callback: Any) -> Iterator[Any]:
    """A compiler function, or Dynamo's callback of one, and what it wraps, outermost first."""
    inside = ("_torchdynamo_orig_backend", "_torchdynamo_orig_callable", "compiler_fn", "func")
    while callback is not None:
        yield callback
        callback = next((found for name in inside if (found := getattr(callback, name, None)) is not None), None)


def compiled_callables(module: nn.Module) -> Iterator[object]:
    """What a module holds that `torch.compile` returned: itself, its `__call__`, its forward, other methods."""
    yield module
    yield module.__dict__.get("_compiled_call_impl")
    yield from list(module.__dict__.values())
    for kind in type(module).__mro__:
        if kind is not nn.Module and not kind.__module__.startswith("torch."):
            yield from list(vars(kind).values())


def is_compiled(module: nn.Module) -> bool:
    """Whether a module is compiled as a whole, with any backend: in place, or by `torch.compile(module)`."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, COMPILED)


def inner_module(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` returned this one for; any other module itself."""
    inner: nn.Module = getattr(module, "_orig_mod", module)
    return inner


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, no module of a model runs compiled code of its own: `module.compile()`, `torch.compile(module)`."""
    calls = [(module, module.__dict__.get("_compiled_call_impl")) for module in model.modules()]
    for module, _ in calls:
        # One that `torch.compile` returned passes calls on; not by setattr, which it passes on too.
        module.__dict__["_compiled_call_impl"] = getattr(module, "_orig_mod", None)
    try:
        yield
    finally:
        for module, call in calls:
            module.__dict__["_compiled_call_impl"] = call
