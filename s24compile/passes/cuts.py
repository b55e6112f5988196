"""Pointwise expressions in a graph: which nodes a result is computed from, number by number, and by what formula.

g = linear(..)    s = sigmoid(g)    m = mul(u, g)    p = mul(m, s)

cuts(p):  {m, s}, then {m, g}, then {u, g}: every one or two nodes that all of p is computed from, nearest first
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from s24compile.passes.effects import undisturbed
from s24compile.passes.functions import Expression, Place, Step
from s24compile.passes.pointwise import is_cast, is_pointwise, subject
from s24compile.passes.scope import fake, known_fake, same_shape
from s24compile.passes.spelling import raw_name

_LIMIT = 24
"""Nodes of one expression; activations written out have up to ten, a dozen where they are multiplied by a gate."""
_FILLS = {
    "zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0,
    "tensor": 0, "scalar_tensor": 0, "full": 1, "full_like": 1, "new_full": 2,
}  # fmt: skip
"""Ops that fill a new tensor with one number: the number, or the place of the argument that it is."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """An expression as a set of nodes: `inside` computes the last of them from `leaves`."""

    leaves: tuple[fx.Node, ...]
    """One or two, in graph order."""
    inside: frozenset[fx.Node]
    constants: frozenset[fx.Node]
    """Tensors filled with one number that it reads."""
    floats: tuple[torch.SymFloat, ...]
    """Symbolic numbers (dynamic=True) that it was read with the present value of."""

    @property
    def root(self) -> fx.Node:
        """The node of the result."""
        return max(self.inside)

    def nodes(self) -> tuple[fx.Node, ...]:
        """All that computes the result and nothing else, the root first."""
        own = {constant for constant in self.constants if self.inside.issuperset(constant.users)}
        return tuple(sorted(self.inside | own, reverse=True))

    def expression(self) -> Expression:
        """The formula, without the graph."""
        places: dict[fx.Node, Place] = {leaf: Place(i) for i, leaf in enumerate(self.leaves)}
        steps: list[Step] = []

        def argument(value: object) -> object:
            if not isinstance(value, fx.Node):
                return value
            if value in places:
                return places[value]
            number = _number(value)
            if number is not None:
                return number
            steps.append(Step(_filled, (_fill(value),)))
            places[value] = Place(len(self.leaves) + len(steps) - 1)
            return places[value]

        for node in sorted(self.inside):
            args = tuple(argument(value) for value in node.args)
            keywords = tuple((key, argument(value)) for key, value in node.kwargs.items())
            steps.append(Step(_wide, args[:1]) if is_cast(node) else Step(_call(node), args, keywords))
            places[node] = Place(len(self.leaves) + len(steps) - 1)
        return Expression(len(self.leaves), tuple(steps))

    def keeps_dtype_of(self, leaf: fx.Node) -> bool:
        """Whether nothing in between is rounded to less than `leaf` is: a formula knows no dtypes."""
        dtype = known_fake(leaf).dtype
        casts = [known_fake(n).dtype for n in self.inside if is_cast(n) and known_fake(subject(n)).dtype != torch.bool]
        return all(to == dtype or to.itemsize > dtype.itemsize for to in casts)

    def at_one_moment(self) -> bool:
        """Whether nothing is written and no mode changes while it is computed."""
        return len(self.inside) == 1 or undisturbed(self.inside)


def cuts(root: fx.Node, most: int) -> Iterator[Cut]:
    """Every cut through the expression that ends at `root`, by at most that many nodes; nearest first."""
    value = fake(root)
    if value is None:
        return
    floats: list[torch.SymFloat] = []
    inside, constants = set[fx.Node](), set[fx.Node]()
    opened: fx.Node | None = root if is_pointwise(root) else None
    # What it is computed from: nodes that can be opened, and nodes that end the expression.
    waiting, closed = set[fx.Node](), set[fx.Node]()
    while opened is not None and len(inside) < _LIMIT:
        inside.add(opened)
        for operand in opened.all_input_nodes:
            if _number(operand) is not None:
                symbol = operand.meta["example_value"]
                floats += [symbol] if isinstance(symbol, torch.SymFloat) else []
            elif _fill(operand) is not None:
                constants.add(operand)
            elif is_pointwise(operand) and same_shape(known_fake(operand), value):
                waiting.add(operand)
            else:
                closed.add(operand)
        if len(closed) > most:
            return
        if 1 <= len(waiting) + len(closed) <= most:
            leaves = tuple(sorted(waiting | closed))
            yield Cut(leaves, frozenset(inside), frozenset(constants), tuple(floats))
        opened = max(waiting, default=None)
        waiting -= {opened}


def _number(node: fx.Node) -> float | None:
    """The value of a node that is a number, symbolic perhaps."""
    value = node.meta.get("example_value")
    if isinstance(value, torch.SymFloat):
        value = value.node.hint
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _fill(node: fx.Node) -> float | None:
    """The number that a constant tensor is filled with; None for any other node."""
    name = raw_name(node)
    if name not in _FILLS or fake(node) is None:
        return None
    place = _FILLS[name]
    if isinstance(place, float):
        return place
    value = node.args[place] if place < len(node.args) else node.kwargs.get("fill_value")
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _call(node: fx.Node) -> Any:
    return node.target if node.op == "call_function" else getattr(Tensor, str(node.target))


def _filled(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _wide(value: Tensor) -> Tensor:
    return value.to(torch.float64)
