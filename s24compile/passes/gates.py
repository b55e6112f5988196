"""The two halves of one fused gate/up projection z [.., 2F], found by where they lie in z and not by how they are cut.

Canonical: `c = z.chunk(2, -1)`, `getitem(c, 0)`, `getitem(c, 1)`.
"""

from __future__ import annotations

import operator
from typing import Literal

from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.passes.effects import in_one_mode, is_written, writes
from s24compile.passes.emit import Emitter, replace_node
from s24compile.passes.scope import fake, known_fake, storage_of
from s24compile.passes.spelling import SLICING, general_name, known_name
from s24compile.torch_internals.graphs import FakeTensorMode

HALF = "half"
"""The name of the rule below."""
Place = Literal[0, 1, "interleaved"]


def half(node: fx.Node, emit: Emitter) -> fx.Node | None:
    """One half of a linear's result, however it is cut.

        getitem(chunk(z, 2, dim=-1), i) | getitem(split(z, F, -1), i) | getitem(z, (Ellipsis, slice(F, None)))
        | narrow(z, -1, F, F) | getitem(unbind(view(z, (B, S, 2, F)), 2), i)
        | getitem(unflatten(z, -1, (2, F)), (Ellipsis, i, slice(None)))
            ->  getitem(chunk(z, 2, -1), i)                                                  z [.., 2F], result [.., F]

    Refused: interleaved halves (every second column), other parts than halves, z from anything but a linear, a z
    of another grad mode.
    """
    found = half_of(node)
    if found is None or found[1] == "interleaved":
        return None
    z, index = found
    if _is_canonical(node) or not in_one_mode((z, node)):
        return None
    chunk = next((user for user in z.users if _is_canonical_chunk(user) and user < node), None)
    if chunk is None:
        with z.graph.inserting_after(z):
            chunk = emit.method("chunk", z, 2, -1)
    return emit.same_value(operator.getitem, chunk, index)


def uncut(graph: fx.Graph, fake_mode: FakeTensorMode | None) -> int:
    """Makes halves that somebody writes to views of z by themselves again; returns how many.

        c = chunk(z, 2, -1); h = getitem(c, i); h.sub_(1)   ->   h = z.narrow(-1, i * F, F); h.sub_(1)

    Autograd lets nobody write to one of several views that one op returns. What the rule `half` has cut, the user had
    not cut by `chunk`.
    """
    count, written = 0, writes(graph)
    for node in list(graph.nodes) if written else ():
        ours = _is_canonical(node) and node.meta.get("s24", {}).get("rule") == HALF
        z = node.args[0].args[0] if ours and isinstance(node.args[0], fx.Node) else None
        if not isinstance(z, fx.Node) or not is_written(z, written):
            continue
        emit, width, index = Emitter(node, fake_mode, HALF), known_fake(node).shape[-1], node.args[1]
        assert isinstance(index, int)
        with graph.inserting_before(node):
            replace_node(node, emit.method("narrow", z, -1, index * width, width))
        count += 1
    return count


def half_of(node: fx.Node) -> tuple[fx.Node, Place] | None:
    """(z, which half) if `node` is a view of one half of the linear result z, by shape, strides and offset."""
    z = node
    while general_name(z) in SLICING and z.args and isinstance(z.args[0], fx.Node):
        z = z.args[0]
    part, whole = fake(node), fake(z)
    if z is node or known_name(z) != "linear" or part is None or whole is None or part.dim() != whole.dim():
        return None
    if storage_of(part) != storage_of(whole):  # a reshape on the way copied, in another order
        return None
    if part.dtype != whole.dtype:  # a view of the bits
        return None
    same = statically_known_true
    width = part.shape[-1]
    if not same(2 * width == whole.shape[-1]):
        return None
    if not all(same(a == b) for a, b in zip(part.shape[:-1], whole.shape[:-1], strict=True)):
        return None
    rows = zip(part.shape[:-1], part.stride()[:-1], whole.stride()[:-1], strict=True)
    if not all(same(size == 1) or same(a == b) for size, a, b in rows):
        return None
    if same(part.stride(-1) == 2):
        return z, "interleaved"
    if not same(part.stride(-1) == 1):
        return None
    offset = part.storage_offset() - whole.storage_offset()
    if same(offset == 0):
        return z, 0
    return (z, 1) if same(offset == width) else None


def _is_canonical_chunk(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target == "chunk" and node.args[1:] == (2, -1) and not node.kwargs


def _is_canonical(node: fx.Node) -> bool:
    source = node.args[0] if node.target is operator.getitem else None
    return isinstance(source, fx.Node) and _is_canonical_chunk(source)
