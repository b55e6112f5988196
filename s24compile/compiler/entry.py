"""The entry point "s24" of torch_dynamo_backends: what `torch.compile(model, backend="s24")` loads, once a process."""

from __future__ import annotations

from typing import Any

from s24compile.torch_internals.dynamo import register_again


def __getattr__(name: str) -> Any:
    if name != "s24":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from s24compile.compiler.backend import s24

    # Of two threads that load at once, both register.
    register_again(name, f"{__name__}:{name}")
    return s24
