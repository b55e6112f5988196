"""Patterns of small expressions, matched on FX nodes: `mul(x, sigmoid(mul(1.702, x)))`.

Constants compare with a tolerance (library code rounds sqrt(2/pi) in three ways), commutative operands in both
orders, ints equal floats. A variable matches any node, the same node wherever its name is repeated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_float

from s24compile.passes.spelling import COMMUTATIVE, spell

TOLERANCE = 1e-6
"""Relative. The roundings of sqrt(2/pi) differ by 5e-9; 0.70710678 and 1/sqrt(2) by 2e-9."""


@dataclasses.dataclass(frozen=True)
class Var:
    """Any node; the same one for the same name."""

    name: str = "x"


@dataclasses.dataclass(frozen=True)
class Const:
    """A number, within `TOLERANCE`."""

    value: float


@dataclasses.dataclass(frozen=True)
class Call:
    """An op of `spelling`, with patterns or plain values (compared by ==) for its leading arguments."""

    name: str
    args: tuple[object, ...]


def call(name: str, *args: object) -> Call:
    """`call("mul", 0.5, Var())`: floats and ints become `Const`."""
    return Call(name, tuple(Const(float(a)) if isinstance(a, (int, float)) else a for a in args))


@dataclasses.dataclass(frozen=True)
class Matched:
    """A successful match: what the variables stand for, the nodes of the expression, and numbers to hold on to."""

    variables: tuple[tuple[str, fx.Node], ...] = ()
    interior: tuple[fx.Node, ...] = ()
    """Nodes of the expression, the root among them; not the variables."""
    floats: tuple[torch.SymFloat, ...] = ()
    """Symbolic numbers (dynamic=True) that equal a constant now."""

    def variable(self, name: str = "x") -> fx.Node:
        return dict(self.variables)[name]

    def hold_constants(self) -> None:
        """Guards every symbolic number that was taken for a constant, so that another value recompiles."""
        for number in self.floats:
            guard_float(number)


def match_expression(pattern: Call, root: fx.Node) -> Matched | None:
    """The first way in which `pattern` matches at `root`, or None."""
    return next(_match(pattern, root, Matched()), None)


def _match(pattern: object, value: object, so_far: Matched) -> Iterator[Matched]:
    if isinstance(pattern, Const):
        yield from _match_constant(pattern.value, value, so_far)
    elif isinstance(pattern, Var):
        if isinstance(value, fx.Node):
            bound = dict(so_far.variables).get(pattern.name)
            if bound is None:
                yield dataclasses.replace(so_far, variables=(*so_far.variables, (pattern.name, value)))
            elif bound is value:
                yield so_far
    elif isinstance(pattern, Call):
        op = spell(value)
        if op is None or op.name != pattern.name or op.inplace:
            return
        assert isinstance(value, fx.Node)
        inside = dataclasses.replace(so_far, interior=(*so_far.interior, value))
        yield from _match_args(pattern.args, op.args, inside)
        if pattern.name in COMMUTATIVE:
            yield from _match_args(pattern.args, (op.args[1], op.args[0]), inside)
    elif pattern == value:
        yield so_far


def _match_args(patterns: tuple[object, ...], values: tuple[object, ...], so_far: Matched) -> Iterator[Matched]:
    if not patterns:
        yield so_far
        return
    for matched in _match(patterns[0], values[0], so_far):
        yield from _match_args(patterns[1:], values[1:], matched)


def _match_constant(constant: float, value: object, so_far: Matched) -> Iterator[Matched]:
    symbolic: tuple[torch.SymFloat, ...] = ()
    if isinstance(value, fx.Node):
        number = value.meta.get("example_value")
        if not isinstance(number, torch.SymFloat):
            return
        hint = number.node.hint
        symbolic = (number,)
    else:
        hint = value
    if isinstance(hint, bool) or not isinstance(hint, (int, float)):
        return
    if math.isclose(hint, constant, rel_tol=TOLERANCE, abs_tol=0.0):
        yield dataclasses.replace(so_far, floats=(*so_far.floats, *symbolic))
