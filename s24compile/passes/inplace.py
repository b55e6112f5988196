"""Turns in-place ops on private hidden activations into their functional forms.

    h = linear(x, w, b)          [.., F]        h = linear(x, w, b)
    r = h.relu_()                [.., F]   ->   r = relu(h)
    linear(r, w2, b2)                           linear(r, w2, b2)

Refused (left as it is) where anybody could see the mutation: the mutated tensor, or another view of its storage,
is used afterwards as what it was, or its storage is not the fresh result of a known op. Two halves of one chunk are
disjoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from s24compile.passes.effects import in_one_mode
from s24compile.passes.emit import Emitter
from s24compile.passes.scope import known_fake
from s24compile.passes.spelling import ALIASING, SPLITS, Op, general_name, is_fresh

FUNCTIONAL: dict[str, Callable[..., Any]] = {
    "relu": F.relu, "silu": F.silu, "mul": torch.mul, "add": torch.add, "square": torch.square, "pow": torch.pow,
    "clamp": torch.clamp, "clamp_min": torch.clamp_min, "dropout": F.dropout, "div": torch.div,
}  # fmt: skip


def functional_form(node: fx.Node, op: Op, emit: Emitter) -> fx.Node | None:
    """A functional node with the same result as the in-place `node`, or None if the mutation could be seen."""
    mutated, target = op.args[0], FUNCTIONAL.get(op.name)
    base = _private_base(mutated, node) if target is not None and isinstance(mutated, fx.Node) else None
    # Written under no_grad, a tensor keeps the gradient that it had.
    if target is None or base is None or not in_one_mode((base, node)):
        return None
    args = {"relu": op.args[:1], "silu": op.args[:1], "add": op.args[:2], "div": op.args[:2]}.get(op.name, op.args)
    if op.name == "div" and op.args[2] is not None:
        return None
    later = [user for user in mutated.users if user > node]
    new = emit.function(target, *args[:3], False) if op.name == "dropout" else emit.function(target, *args)
    dtype = known_fake(mutated).dtype
    if known_fake(new).dtype != dtype:  # what is written is rounded to what is there
        new = emit.method("to", new, dtype)
    for user in later:  # `h.relu_()` as a statement: what follows says `h` and means the result
        user.replace_input_with(mutated, new)
    return new


def _private_base(mutated: fx.Node, mutation: fx.Node) -> fx.Node | None:
    """The op that allocated what is mutated, or None where somebody could see the mutation."""
    base, via = _base(mutated)
    if base is None:
        return None
    aliases, seen = [base], {base}
    while aliases:
        alias = aliases.pop()
        for user in alias.users:
            if user is mutation or user in seen:
                continue
            if general_name(alias) in SPLITS and alias in via and user not in via and _is_other_part(user, via):
                continue  # disjoint memory
            if user > mutation and alias is mutated:
                continue  # sees the result, under the old name
            if user > mutation:
                return None
            if general_name(user) in ALIASING:
                seen.add(user)
                aliases.append(user)
            elif not is_fresh(user):
                return None
    return base


def _is_other_part(user: fx.Node, via: set[fx.Node]) -> bool:
    taken = [at.args[1] for at in via if at.args and at.args[0] is user.args[0] and general_name(at) == "getitem"]
    return general_name(user) == "getitem" and isinstance(user.args[1], int) and user.args[1] not in taken


def _base(node: fx.Node) -> tuple[fx.Node | None, set[fx.Node]]:
    """The op that allocated a tensor, and the views on the way to it; None if it is not known to be fresh."""
    via = {node}
    while not is_fresh(node):
        if general_name(node) not in ALIASING or not node.args or not isinstance(node.args[0], fx.Node):
            return None, via
        node = node.args[0]
        via.add(node)
    return node, via
