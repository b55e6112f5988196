"""Sixth pass: how many bytes each layer will keep for the backward. T tokens, F hidden width.

Z [T, F] (or [T, 2F]) is the activation's operand, H [T, F] that of the last weight gradient, P a 2:4 hidden state in
place of both. The layer's input is not counted, since the dense layer keeps it, too; nor are dropout masks. In eight
bits H is kept quantised and transposed, whatever `Config.memory` says. The sizes are those that Inductor's partitioner
saves (`tests/lowering/test_memory.py` compares); what a graph really saves is in the log, see `lowering.memory`.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import fx

from s24compile.graphs.marks import mark_of
from s24compile.graphs.recomputed import RECOMPUTED
from s24compile.kernels.format import FORMATS
from s24compile.passes.linears import Linear
from s24compile.passes.match import RESHAPES, Match
from s24compile.passes.scope import Scope, fake, hop_name, known_fake
from s24compile.passes.spelling import general_name
from s24compile.passes.state import State

_RECOMPUTED = tuple(getattr(torch.ops.s24, name).default for name in RECOMPUTED)
KEPT_SENTENCE = "memory='save' keeps its hidden state: what makes it is not a 2:4 layer's activation or gate"

NARROW_SENTENCE = "memory='save' keeps its hidden state, which is in eight bits"


def note_saved(state: State) -> int:
    """Completes the rows of the rewritten layers; returns in how many something is kept."""
    count = 0
    for place, match in enumerate(state.matches):
        narrow = _is_narrow(match, state)
        saved = _saved(match, state) if match.taken else {}
        again = saved.get("H", 0) if not narrow and _made_by(match.linears[-1].x, state) in _RECOMPUTED else 0
        if again and state.config.memory == "save":
            again -= saved.pop("H")
        site, reason = state.sites[place], state.sites[place].reason
        if state.config.memory == "save" and "H" in saved:
            reason = "; ".join(filter(None, (reason, NARROW_SENTENCE if narrow else KEPT_SENTENCE)))
        state.sites[place] = dataclasses.replace(
            site, saved_bytes=tuple(saved.items()), recomputable_bytes=again, reason=reason
        )
        count += bool(saved)
    return count


def _is_narrow(match: Match, state: State) -> bool:
    """Whether the last projection multiplies eight-bit floats."""
    last = match.linears[-1]
    return last in match.narrow or (last in match.taken and state.options_for(mark_of(last.node)).eight_bit)


def _saved(match: Match, state: State) -> dict[str, int]:
    """Bytes by name; those that are zero, or of sizes without a hint, are left out."""
    *before, last = match.linears
    runs = _runs(match.scope)
    if match.hidden is not None:
        p = _packed_bytes(last, state) if _has_gradient(last.node, match.scope) else 0
        return {"P": runs * p} if runs * p else {}
    z = sum(_bytes(linear.node) for linear in before if _has_gradient(linear.node, match.scope))
    kept = torch.float8_e4m3fn if _is_narrow(match, state) else known_fake(last.node).dtype
    h = _bytes(last.x, kept) if before and _has_gradient(last.weight, match.scope) else 0
    return {name: runs * count for name, count in (("Z", z), ("H", h)) if runs * count}


def _runs(scope: Scope) -> int:
    """How often a graph runs in a forward that keeps its tensors: not at all where they are recomputed."""
    if not scope.calls:
        return 1
    return sum(_runs(parent) for parent, call in scope.calls if hop_name(call) != "tag_activation_checkpoint")


def _has_gradient(node: fx.Node | None, scope: Scope) -> bool:
    value = fake(node)
    # The values of a body do not say.
    return value is not None and torch.is_grad_enabled() and (value.requires_grad or bool(scope.calls))


def _bytes(node: fx.Node, dtype: torch.dtype | None = None) -> int:
    """Of the example's tensor, without a guard on symbols."""
    value = known_fake(node)
    sizes = [size if isinstance(size, int) else size.node.hint for size in value.shape]
    return 0 if None in sizes else math.prod(sizes) * (dtype or value.dtype).itemsize


def _packed_bytes(last: Linear, state: State) -> int:
    """Of the hidden state that a linear multiplies by, packed: half of its elements, and their places."""
    form, dtype = FORMATS[state.options_for(mark_of(last.node)).format], known_fake(last.node).dtype
    tokens = _bytes(last.x, torch.uint8) // last.in_features
    places = math.prod(form.metadata_shape(tokens, last.in_features, dtype)) * form.metadata_dtype(dtype).itemsize
    return tokens * form.values_pitch(last.in_features, dtype) * dtype.itemsize + places


def _made_by(x: fx.Node, state: State) -> object:
    """The op whose result `x` is, in another shape perhaps; `x` may be gone by now."""
    while general_name(x) in RESHAPES and x.args and isinstance(x.args[0], fx.Node):
        x = x.args[0]
    value = fake(x)
    return next((new.target for old, new in state.replaced if old is value), x.target)
