"""How the arguments of an op reach its kernels: flat in the schema, grouped by what belongs together in Python.

torch.library knows tensors, numbers and strings. A kernel, and the contract that says what an op means, take a
`Packed24` where the schema spells out what it consists of::

    kernel    mm(a: Packed24, b, bias, out_layout, out_dtype)
    schema    s24::mm(values, metadata, rows, cols, format, b, bias, out_layout, out_dtype)

Whoever calls an op, eager code, a graph or `providers`, gives the flat arguments. A leaf.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from s24compile.kernels.packed import Packed24, ScaledPair
from s24compile.kernels.stacks import Packing, Stack, Stacks

Arguments = tuple[Any, ...]

GROUPS: dict[type, Callable[..., Any]] = {
    Packed24: Packed24.of, ScaledPair: ScaledPair.of, Stack: Stack, Stacks: Stacks, Packing: Packing,
}  # fmt: skip
"""Annotation of a grouped parameter -> what makes it of its part of the flat arguments, whose parameters name those."""


def flat_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of the schema for a function whose parameters are grouped: names, order and types."""
    hints = typing.get_type_hints(function)
    kind, found = inspect.Parameter.POSITIONAL_OR_KEYWORD, []
    for name in _parameters(function):
        made_by = GROUPS.get(hints[name])
        members = _members(made_by) if made_by is not None else {name: hints[name]}
        found += [inspect.Parameter(member, kind, annotation=hint) for member, hint in members.items()]
    returned = hints["return"]
    return inspect.Signature(found, return_annotation=None if returned is type(None) else returned)


@functools.cache
def gatherer(function: Callable[..., Any]) -> Callable[[Arguments], Arguments]:
    """What turns the flat arguments of a call into those that `function` takes."""
    hints, spans, at = typing.get_type_hints(function), [], 0
    for name in _parameters(function):
        make = GROUPS.get(hints.get(name, Any))
        width = len(_members(make)) if make is not None else 1
        spans.append((at, at + width, make))
        at += width
    grouped = [span for span in spans if span[2] is not None]
    if not grouped:
        return _as_they_are
    start, stop, first = grouped[0]
    if start == 0 and len(grouped) == 1 and first is not None:  # most ops: once a call, so kept short
        return lambda args: (first(*args[:stop]), *args[stop:])

    def gather(args: Arguments) -> Arguments:
        return tuple([args[i] if make is None else make(*args[i:j]) for i, j, make in spans])

    return gather


def _as_they_are(args: Arguments) -> Arguments:
    return args


def _parameters(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters that stand for the op's: those without a default."""
    given = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in given if parameter.default is inspect.Parameter.empty]


def _members(make: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(make)
    return {name: hint for name, hint in hints.items() if name != "return"}
