"""Ops whose kernel is settled: what lowering puts in place of `s24.mm` & co. once it has chosen a provider.

`torch.ops.s24_cutlass.mm` is `torch.ops.s24.mm` on CUTLASS's kernel, with the same schema and fake kernel, but without
the layers that cost CPU time at every call: the choice of a provider, autograd (a lowered graph has none), and torch's
dispatcher (`shortcut`).

They are defined for all providers at import, because a graph out of Inductor's cache names them without lowering.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from s24compile.kernels import providers
from s24compile.kernels.ops.shortcut import shorten
from s24compile.torch_internals.operators import OpOverload, schema_of

DIRECT: dict[str, tuple[str, ...]] = {
    "cutlass": (
        *("mm", "mm_act", "mm_dact", "mm_dact_sum", "mm_add", "mm_glu", "mm_dglu"),
        *("scaled_mm", "scaled_mm_act", "scaled_mm_dact", "scaled_mm_add", "scaled_mm_glu", "scaled_mm_dglu"),
    ),
    "cublas": ("scaled_dense",),
    "triton": (
        *("mvue_pack", "mvue_pack_sum", "glu", "glu_backward", "activation_pack", "activation_backward_pack"),
        *("amax", "quantise", "quantise_pack", "glu_backward_amax", "glu_backward_quantise_pack"),
    ),
}
"""Provider -> its ops that stand in lowered graphs."""

_LIBRARIES: list[torch.library.Library] = []


def direct(provider: str, op: str) -> OpOverload | None:
    """The op that runs `op` on `provider` and nothing else, or None where there is none (the reference)."""
    if op not in DIRECT.get(provider, ()):
        return None
    found: OpOverload = getattr(getattr(torch.ops, f"s24_{provider}"), op).default
    return found


def define_direct_ops() -> None:
    """Registers them; called once, when the contracts they copy have been registered."""
    for provider, names in DIRECT.items():
        library = torch.library.Library(f"s24_{provider}", "DEF")
        _LIBRARIES.append(library)  # a library that is collected takes its ops with it
        for name in names:
            contract: OpOverload = getattr(torch.ops.s24, name).default
            library.define(str(schema_of(contract)).removeprefix("s24::"))
            kernel = _kernel(provider, name)
            library.impl(name, kernel, "CompositeExplicitAutograd")
            torch.library.register_fake(f"s24_{provider}::{name}", contract, lib=library)
            shorten(getattr(getattr(torch.ops, f"s24_{provider}"), name).default, kernel)


def _kernel(provider: str, op: str) -> Callable[..., Any]:
    """Calls the provider's function, which is imported at the first call."""
    run: Callable[..., Any] | None = None

    def kernel(*args: Any) -> Any:
        nonlocal run
        if run is None:
            run = providers.kernel(op, provider)
        return run(*args)

    return kernel
