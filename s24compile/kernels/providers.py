"""Which kernel runs an op: one choice function, used by eager calls and by lowering (also on fake tensors).

The kernels of an op are in a folder of this package and come from *providers*, one module each, beside the reference.
Such a module holds ``PROVIDERS: dict[str, Provider]``, op name to provider, and is imported only when a device whose
priority list names it asks for the op: torch's CPU users never import Triton.

All functions here take an op's arguments as its schema has them; a provider's functions take them grouped
(`signature.py`), with the names and in the order of the reference's.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from s24compile.errors import TargetError
from s24compile.kernels.arch import PROVIDERS, where
from s24compile.kernels.signature import Arguments, gatherer
from s24compile.kernels.target import Target

FOLDER_OF: dict[str, str] = {
    "transposable_patterns": "masks",
    "expand_patterns": "masks",
    "transposable_mask": "masks",
    "magnitude_patterns": "masks",
    "magnitude_mask": "masks",
    "soft_threshold": "masks",
    "soft_threshold_scale": "masks",
    "flip_rate": "masks",
    "pack": "pack",
    "unpack": "pack",
    "pack_both": "pack",
    "pack_weight_": "pack",
    "pack_weights_": "pack",
    "mvue": "mvue",
    "mvue_pack": "mvue",
    "mvue_pack_sum": "mvue",
    "mm": "gemm",
    "mm_act": "gemm",
    "mm_dact": "gemm",
    "mm_dact_sum": "gemm",
    "mm_add": "gemm",
    "mm_glu": "gemm",
    "mm_dglu": "gemm",
    "act": "glu",
    "act_backward": "glu",
    "glu": "glu",
    "glu_backward": "glu",
    "masked_decay_": "decay",
    "masked_decay_patterns_": "decay",
    "masked_decay_many_": "decay",
    "copy_samples_": "watch",
    "compare_samples_": "watch",
    "amax": "fp8",
    "quantise": "fp8",
    "quantise_pack": "fp8",
    "glu_backward_amax": "fp8",
    "glu_backward_quantise_pack": "fp8",
    "unpack_transposed": "fp8",
    "pack_weights_fp8_": "fp8",
    "scaled_mm": "gemm",
    "scaled_mm_act": "gemm",
    "scaled_mm_dact": "gemm",
    "scaled_mm_add": "gemm",
    "scaled_mm_glu": "gemm",
    "scaled_mm_dglu": "gemm",
    "scaled_dense": "gemm",
    "activation_pack": "activation",
    "activation_backward_pack": "activation",
    "activation_layer": "activation",
}
"""The folder that holds the kernels of each op."""


@dataclasses.dataclass(frozen=True)
class Provider:
    """One implementation of one op. Refusals are sentences; None means yes."""

    name: str
    """A name of `arch.PROVIDERS`, and of the module that it comes from."""
    run: Callable[..., Any]
    """The kernel. Its parameters are those of the reference."""
    supports: Callable[..., str | None] = lambda *args: None
    """Whether it takes these arguments (real or fake), those of `run`; looks at shapes, strides and dtypes only."""
    supported: Callable[[Target], str | None] = lambda target: None
    """Whether a machine of an architecture that has such kernels can run them; asked once per process and target."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What was chosen for a call, and why nothing better was."""

    op: str
    provider: Provider
    refused: Mapping[str, str]
    """Provider name to sentence, for each provider that this machine or these arguments rule out."""


_only: contextvars.ContextVar[str | None] = contextvars.ContextVar("s24_only_provider", default=None)
_calls: collections.Counter[tuple[str, str]] = collections.Counter()


@contextlib.contextmanager
def only(name: str | None) -> Iterator[None]:
    """Within the block every op runs on the provider `name`, on any device, or raises TargetError.

    None takes back an `only` around it.
    """
    token = _only.set(name)
    try:
        yield
    finally:
        _only.reset(token)


def forced() -> str | None:
    """The provider that an `only` around the caller allows; None where there is none."""
    return _only.get()


def recorded() -> dict[tuple[str, str], int]:
    """How many eager calls each (op, provider) has served in this process."""
    return dict(_calls)


@functools.cache
def find(op: str, name: str) -> Provider | None:
    """The provider `name` of an op, or None if there is none. Imports its module."""
    module = f"{__package__}.{FOLDER_OF[op]}.{name}"
    if importlib.util.find_spec(module) is None:
        return None
    loaded = importlib.import_module(module)
    if name == "reference":
        return Provider(name, getattr(loaded, op))
    table: Mapping[str, Provider] = getattr(loaded, "PROVIDERS", {})
    return table.get(op)


def serving(target: Target, ops: Iterable[str] = tuple(FOLDER_OF)) -> dict[str, str]:
    """Op to the provider that `target` would use, for arguments that every provider takes."""
    return {op: _on_target(op, target)[0][0].name for op in ops}


def choose(op: str, *args: Any, target: Target | None = None) -> Chosen:
    """Picks the provider of one call: the first of the target's list that this machine and these arguments allow.

    Args:
        op: name without namespace.
        args: the op's arguments, in the order of its schema; fake tensors will do.
        target: what to choose for; None for the machine of the first tensor.

    Raises:
        TargetError: within `only(name)`, if `name` refuses.
    """
    refused: dict[str, str] = {}
    provider = _first(op, gatherer_of(op)(args), target, refused)
    return Chosen(op, provider, refused)


def run(op: str, *args: Any) -> Any:
    """Chooses and calls. What the eager implementation of each registered op is."""
    grouped = gatherer_of(op)(args)
    provider = _first(op, grouped, None, None)
    _calls[op, provider.name] += 1
    return provider.run(*grouped)


def refusal(op: str, name: str, *args: Any) -> str | None:
    """Why the provider `name` would not take a call, on a machine that has its kernels; None if it would."""
    return _refusal(find(op, name), op, gatherer_of(op)(args))


def kernel(op: str, name: str) -> Callable[..., Any]:
    """What runs an op on the provider `name` and asks nothing; takes the op's arguments.

    Raises:
        TargetError: `name` has no kernel for it.
    """
    provider = find(op, name)
    if provider is None:
        raise _no_kernel(op, name, "any target", f"has no kernel for {op}")
    gather, run_grouped = gatherer_of(op), provider.run
    return lambda *args: run_grouped(*gather(args))


@functools.cache
def gatherer_of(op: str) -> Callable[[Arguments], Arguments]:
    """What groups an op's arguments as its kernels take them: as its reference does."""
    reference = find(op, "reference")
    assert reference is not None, f"s24::{op} has no reference"
    return gatherer(reference.run)


def _first(op: str, args: Arguments, target: Target | None, refused: dict[str, str] | None) -> Provider:
    """The first provider that takes the call; `refused`, if given, gets the reasons of those before it."""
    forced = _only.get()
    if forced is not None:
        return _forced(op, args, target, forced)
    candidates, reasons = _on_device(op, _device(args)) if target is None else _on_target(op, target)
    if refused is not None:
        refused.update(reasons)
    for provider in candidates:
        reason = provider.supports(*args)
        if reason is None:
            return provider
        if refused is not None:
            refused[provider.name] = reason
    raise TargetError(
        what=f"s24::{op}", target=str(target), found="no provider takes it", accepted="the reference takes all calls"
    )


def _forced(op: str, args: Arguments, target: Target | None, name: str) -> Provider:
    provider = find(op, name)
    reason = _refusal(provider, op, args)
    if provider is not None and reason is None:
        return provider
    raise _no_kernel(op, name, str(target or Target.detect(_device(args))), str(reason))


def _refusal(provider: Provider | None, op: str, args: Arguments) -> str | None:
    return f"has no kernel for {op}" if provider is None else provider.supports(*args)


def _no_kernel(op: str, name: str, target: str, found: str) -> TargetError:
    accepted = f"providers are {', '.join(PROVIDERS)}"
    return TargetError(what=f"the {name} kernel of s24::{op}", target=target, found=found, accepted=accepted)


@functools.cache
def _on_target(op: str, target: Target) -> tuple[tuple[Provider, ...], dict[str, str]]:
    """The providers of an op that a machine can run, best first, and why it cannot run the others."""
    usable: list[Provider] = []
    refused = {name: f"its kernels are for {where(name)}, this is {target}" for name in PROVIDERS}
    for name in target.arch.providers:
        if name not in (*target.providers, "reference"):
            refused[name] = "is not there, or was not asked for"
            continue
        provider = find(op, name)
        reason = f"has no kernel for {op}" if provider is None else provider.supported(target)
        if provider is not None and reason is None:
            usable.append(provider)
            del refused[name]
        else:
            refused[name] = str(reason)
    return tuple(usable), refused


@functools.cache
def _on_device(op: str, device: torch.device) -> tuple[tuple[Provider, ...], dict[str, str]]:
    return _on_target(op, Target.detect(device))


def _device(args: Arguments) -> torch.device:
    """That of the first tensor, which stands in front in every group and list."""
    first = args[0]
    while not isinstance(first, Tensor):
        first = first[0]
    return first.device
