"""Turns in-place ops on private hidden activations into their functional forms.

    h = linear(x, w, b)          [.., F]        h = linear(x, w, b)
    r = h.relu_()                [.., F]   ->   r = relu(h)
    linear(r, w2, b2)                           linear(r, w2, b2)

Refused (left as it is) where anybody could see the mutation: the mutated tensor, or another view of its storage,
is used afterwards as what it was, or its storage is not the fresh result of a known op. Two halves of one chunk are
disjoint.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from s24compile.passes.effects import in_one_mode, place_of_inplace, written_by
from s24compile.passes.emit import Emitter
from s24compile.passes.pointwise import is_fresh, is_pointwise_op, subject
from s24compile.passes.scope import known_fake
from s24compile.passes.spelling import ALIASING, SPLITS, general_name, raw_name
from s24compile.torch_internals.graphs import nn_functions


def functional_form(node: fx.Node, emit: Emitter) -> fx.Node | None:
    """A functional node with the same result as the in-place `node`, or None if the mutation could be seen."""
    written, call = written_by(node), _functional_call(node)
    if call is None or not written or len(written) != 1 or written[0] is not subject(node):
        return None
    (mutated,) = written
    base = _private_base(mutated, node)
    # Written under no_grad, a tensor keeps the gradient that it had.
    if base is None or not in_one_mode((base, node)):
        return None
    later = [user for user in mutated.users if user > node]
    make = emit.method if isinstance(call.target, str) else emit.function
    new = make(call.target, *call.args, **call.kwargs)
    dtype = known_fake(mutated).dtype
    if known_fake(new).dtype != dtype:  # what is written is rounded to what is there
        new = emit.method("to", new, dtype)
    for user in later:  # `h.relu_()` as a statement: what follows says `h` and means the result
        user.replace_input_with(mutated, new)
    return new


@dataclasses.dataclass(frozen=True)
class _Call:
    target: Any
    """A function, or the name of a method."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def _functional_call(node: fx.Node) -> _Call | None:
    """The call that computes what an in-place one writes.

    h.relu_()  ->  h.relu()    imul(h, u)  ->  mul(h, u)    silu(h, inplace=True)  ->  silu(h)    elu_(h)  ->  elu(h)
    """
    target: Callable[..., Any] | str | None = node.target
    args, kwargs = list(node.args), dict(node.kwargs)
    name = raw_name(node)
    plain = name.removesuffix("_") if name.endswith("_") else name.removeprefix("i")
    if isinstance(target, str):
        if not hasattr(torch.Tensor, plain):
            return None
        target = plain
    elif kwargs.pop("inplace", False):
        plain = name
    elif (place := place_of_inplace(target)) is not None and place < len(args) and args[place]:
        plain, args[place] = name, False
    else:
        homes = (operator, torch, nn_functions, torch.nn.functional)
        home = next((home for home in homes if getattr(home, name, None) is target), None)
        target = getattr(home, plain, None)
    known = plain == "dropout" or is_pointwise_op(_NAMES.get(plain, plain))
    return _Call(target, tuple(args), kwargs) if known and target is not None else None


_NAMES = {"truediv": "true_divide"}


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
