"""`s24.linear` -> `s24.mm`: the forward as the one GEMM that it is; in eight bits with what quantises its operand.

    y[..., N] = s24.linear(x[..., K], [w], values, metadata, values_t, metadata_t, bias, ...)
->  x2 = x.view(T, K); z = s24.mm(values, metadata, N, K, format, x2.t(), bias, "col", dtype); y = z.t().view(..., N)

    y, x_t, descale_x = s24.scaled_linear(x[..., K], [w], values, metadata, descale, ...)
->  q, x_t, descale_x = s24.quantise(x2, s24.amax(x2), e4m3, "both")                  "row" where no backward reads x_t
    z = s24.scaled_mm(values, metadata, N, K, format, descale, q.t(), descale_x, bias, "col", dtype); y = ...

The dense parameters leave the graph here: nothing reads them, and no cast of a master weight is left. The backward has
been made of the ops below by autograd already.
"""

from __future__ import annotations

import torch
from torch import fx

from s24compile.kernels.ops.fp8_linear import EXACT, FORWARD
from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls

aten, s24 = torch.ops.aten, torch.ops.s24


def lower_linear(graph: fx.Graph, target: Target) -> int:
    """Rewrites every `s24.linear` and `s24.scaled_linear` of a forward graph. Returns how many."""
    lower = {"linear": _lower, "scaled_linear": _lower_scaled}
    found = [node for node in s24_calls(graph) if op_name(node) in lower]
    for node in found:
        lower[op_name(node)](node)
    return len(found)


def _lower(node: fx.Node) -> None:
    x, _, values, metadata, _, _, bias, fmt, *_ = node.args
    build = Builder(node)
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    dtype = values.meta["val"].dtype
    flat, rows, cols = _matrix(build, x), _size(build, values, 0), _size(build, x, -1)
    if x.meta["val"].dtype != dtype:
        flat = build.call(torch.ops.prims.convert_element_type.default, flat, dtype)
    columns = build.call(aten.permute.default, flat, [1, 0])
    z = build.call(s24.mm.default, values, metadata, rows, cols, fmt, columns, bias, "col", dtype)
    build.replace_with(_like(build, x, z, rows))


def _lower_scaled(node: fx.Node) -> None:
    x, _, values, metadata, descale, _, _, bias, dtype, fmt, *_ = node.args
    build = Builder(node)
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    items = {user.args[1]: user for user in node.users if user.users}
    flat, rows, cols = _matrix(build, x), _size(build, values, 0), _size(build, x, -1)
    amax = build.call(s24.amax.default, flat)
    quantised = build.call(s24.quantise.default, flat, amax, FORWARD, "both" if 1 in items else "row")
    columns = build.call(aten.permute.default, build.item(quantised, 0), [1, 0])
    pair = values, metadata, rows, cols, fmt, descale, columns, build.item(quantised, 2)
    z = build.call(s24.scaled_mm.default, *pair, bias, "col", dtype, EXACT)
    if 0 in items:
        items[0].replace_all_uses_with(_like(build, x, z, rows))
    for place in (1, 2):
        if place in items:
            items[place].replace_all_uses_with(build.item(quantised, place))
    for user in list(node.users):
        build.graph.erase_node(user)
    build.graph.erase_node(node)


def _matrix(build: Builder, x: fx.Node) -> fx.Node:
    """x [..., K] as [T, K]."""
    return x if x.meta["val"].dim() == 2 else build.call(aten.reshape.default, x, [-1, _size(build, x, -1)])


def _like(build: Builder, x: fx.Node, z: fx.Node, rows: fx.Node | int) -> fx.Node:
    """z [N, T] as [..., N] with the leading dims of x."""
    y, dims = build.call(aten.permute.default, z, [1, 0]), x.meta["val"].dim()
    if dims == 2:
        return y
    return build.call(aten.reshape.default, y, [*(_size(build, x, dim) for dim in range(dims - 1)), rows])


def _size(build: Builder, x: fx.Node, dim: int) -> fx.Node | int:
    """A dim as a number where it is one, else as a node."""
    size = x.meta["val"].shape[dim]
    return size if isinstance(size, int) else build.call(aten.sym_size.int, x, dim % x.meta["val"].dim())
