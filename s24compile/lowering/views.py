"""Views between a GEMM and what is computed from its result.

A linear's output is the transpose of what its GEMM writes: `mm -> permute -> view -> ...`. Elementwise ops commute with
such views, so a fused op takes the GEMM's own layout and the views are repeated on its results.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from s24compile.lowering.build import Builder
from s24compile.torch_internals.graphs import unsafe_view

aten = torch.ops.aten
VIEWS = frozenset(
    {aten.t.default, aten.permute.default, aten.transpose.int, aten.view.default, aten.reshape.default,
     unsafe_view}
)  # fmt: skip


def is_view(node: fx.Node) -> bool:
    """Whether a node only looks at its first argument's memory in another shape."""
    return node.op == "call_function" and node.target in VIEWS


def base_of(node: Any) -> Any:
    """The node whose memory a chain of views looks at."""
    while is_view(node):
        node = node.args[0]
    return node


def chain_from(node: fx.Node, op: object) -> list[fx.Node] | None:
    """[call of `op`, view, ..., node]: the views that lead to `node`, if they start at a call of `op`.

    Each link but the last must have one user, so that nothing else sees the values before the last view.
    """
    links = [node]
    while is_view(links[-1]):
        above = links[-1].args[0]
        if not isinstance(above, fx.Node) or len(above.users) != 1:
            return None
        links.append(above)
    return links[::-1] if links[-1].target is op else None


def repeat_views(build: Builder, links: list[fx.Node], start: fx.Node) -> fx.Node:
    """The views of a chain, on another tensor of the first link's shape and strides."""
    for link in links[1:]:
        start = build.call(link.target, start, *link.args[1:])
    return start


def is_plain(links: list[fx.Node]) -> bool:
    """Whether a chain is that of a linear: the GEMM's "col" result [rows, n], a transpose, then only leading dims."""
    first, *rest = links
    rows = first.meta["val"].shape[0]
    flat_first = bool(rest) and rest[0].meta["val"].shape[-1] == rows and rest[0].target not in _RESHAPES
    return (
        flat_first
        and all(link.target in _RESHAPES for link in rest[1:])
        and bool(links[-1].meta["val"].shape[-1] == rows)
    )


def as_operand_layout(build: Builder, links: list[fx.Node], z: fx.Node) -> fx.Node | None:
    """`z`, with the leading dims of the last link of a "col" GEMM's chain, as a matrix [features, n] column-major.

    None where the chain is not the plain one of a linear.
    """
    if not is_plain(links):
        return None
    fake = z.meta["val"]
    flat = z if fake.dim() == 2 else build.call(aten.reshape.default, z, [-1, fake.shape[-1]])
    return build.call(aten.permute.default, flat, [1, 0])


def with_leading_dims(build: Builder, links: list[fx.Node], matrix: fx.Node) -> fx.Node:
    """`matrix` [features, n] column-major, with the leading dims of the last link of a plain chain."""
    flat = build.call(aten.permute.default, matrix, [1, 0])
    if len(links) == 2:
        return flat
    leading = links[-1].args[1]
    assert isinstance(leading, (list, tuple))
    return build.call(aten.reshape.default, flat, [*leading[:-1], matrix.meta["val"].shape[0]])


_RESHAPES = frozenset({aten.view.default, aten.reshape.default, unsafe_view})
