"""`s24.linear` -> `s24.mm`: the forward as the one GEMM that it is; in eight bits with what quantises its operand.

    y[..., N] = s24.linear(x[..., K], [w], values, metadata, values_t, metadata_t, bias, ...)
->  x2 = x.view(T, K); z = s24.mm(values, metadata, N, K, format, x2.t(), bias, "col", dtype); y = z.t().view(..., N)

    y, x_t, descale_x, amax_x = s24.scaled_linear(x[..., K], [w], values, metadata, descale, ...)
->  q, x_t, descale_x = s24.quantise(x2, s24.amax(x2), e4m3, "both")                  "row" where no backward reads x_t
    z = s24.scaled_mm(values, metadata, N, K, format, descale, q.t(), descale_x, bias, "col", dtype); y = ...

    y, x_t, descale_x, w_t, descale_w = s24.scaled_dense_linear(x[..., K], w[N, K], bias, dtype, "out_in")
->  q, x_t, descale_x = s24.quantise(x2, s24.amax(x2), e4m3, "both");  w, w_t, descale_w = s24.quantise(w, ...)
    y = s24.scaled_dense(q, descale_x, w.t(), descale_w, bias, dtype)

But for those of the last, the dense parameters leave the graph here: nothing reads them, and no cast of a master weight
is left. The backward has been made of the ops below by autograd already.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import fx

from s24compile.kernels.ops.fp8_linear import EXACT, FORWARD
from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls

aten, s24 = torch.ops.aten, torch.ops.s24


def lower_linear(graph: fx.Graph, target: Target) -> int:
    """Rewrites every linear of a forward graph. Returns how many."""
    lower = {"linear": _lower, "scaled_linear": _lower_scaled, "scaled_dense_linear": _lower_dense}
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
    flat, rows, cols = _matrix(build, x), build.size(values, 0), build.size(x, x.meta["val"].dim() - 1)
    if x.meta["val"].dtype != dtype:
        flat = build.call(torch.ops.prims.convert_element_type.default, flat, dtype)
    columns = build.call(aten.permute.default, flat, [1, 0])
    z = build.call(s24.mm.default, values, metadata, rows, cols, fmt, columns, bias, "col", dtype)
    build.replace_with(_like(build, x, z, rows))


def _lower_scaled(node: fx.Node) -> None:
    x, _, values, metadata, descale, _, _, _, bias, dtype, fmt, *_ = node.args
    build = Builder(node)
    assert isinstance(x, fx.Node)
    assert isinstance(values, fx.Node)
    wanted = {user.args[1] for user in node.users if user.users}
    flat, rows, cols = _matrix(build, x), build.size(values, 0), build.size(x, x.meta["val"].dim() - 1)
    quantised = _quantised(build, flat, "row", "col" if 1 in wanted else "")
    amax = quantised.args[1]
    assert isinstance(amax, fx.Node)
    columns = build.call(aten.permute.default, build.item(quantised, 0), [1, 0])
    pair = values, metadata, rows, cols, fmt, descale, columns, build.item(quantised, 2)
    z = build.call(s24.scaled_mm.default, *pair, bias, "col", dtype, EXACT)
    made = {0: lambda: _like(build, x, z, rows), 3: lambda: amax}
    _give(build, node, made | _items(build, quantised, {1: 1, 2: 2}))


def _lower_dense(node: fx.Node) -> None:
    x, weight, bias, dtype, layout = node.args
    build = Builder(node)
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    wanted = {user.args[1] for user in node.users if user.users}
    flat, straight = _matrix(build, x), layout == "out_in"
    forward, backward = (0, 1) if straight else (1, 0)
    quantised = _quantised(build, flat, "row", "col" if 1 in wanted else "")
    sides = ["row", "col"] if straight else ["col", "row"]
    w = _quantised(build, weight, sides[0], sides[1] if 3 in wanted else "")
    columns = build.call(aten.permute.default, build.item(w, forward), [1, 0])
    pair = build.item(quantised, 0), build.item(quantised, 2), columns, build.item(w, 2)
    y = build.call(s24.scaled_dense.default, *pair, bias, dtype, EXACT)
    made = {0: lambda: _with_leading(build, x, y, build.size(weight, 0 if straight else 1))}
    _give(build, node, made | _items(build, quantised, {1: 1, 2: 2}) | _items(build, w, {3: backward, 4: 2}))


def _quantised(build: Builder, x: fx.Node, *sides: str) -> fx.Node:
    """x [T, K] in eight bits, along one dim or both ("row" and "col")."""
    named = sorted(filter(None, sides))
    layout = "both" if len(named) == 2 else named[0]
    return build.call(s24.quantise.default, x, build.call(s24.amax.default, x), FORWARD, layout)


def _items(build: Builder, node: fx.Node, places: Mapping[int, int]) -> dict[int, Callable[[], fx.Node]]:
    """Results of an op that goes -> results of `node` that stand for them, made when they are asked for."""
    return {place: functools.partial(build.item, node, item) for place, item in places.items()}


def _give(build: Builder, node: fx.Node, made: Mapping[int, Callable[[], fx.Node]]) -> None:
    """Puts what is made in the places of a node's results, of those that are read, and erases the node."""
    for user in [u for u in node.users if u.users]:
        place = user.args[1]
        assert isinstance(place, int), "several results are read one by one"
        user.replace_all_uses_with(made[place]())
    for user in list(node.users):
        build.graph.erase_node(user)
    build.graph.erase_node(node)


def _matrix(build: Builder, x: fx.Node) -> fx.Node:
    """x [..., K] as [T, K]."""
    dims = x.meta["val"].dim()
    return x if dims == 2 else build.call(aten.reshape.default, x, [-1, build.size(x, dims - 1)])


def _like(build: Builder, x: fx.Node, z: fx.Node, rows: fx.Node | int) -> fx.Node:
    """z [N, T] as [..., N] with the leading dims of x."""
    return _with_leading(build, x, build.call(aten.permute.default, z, [1, 0]), rows)


def _with_leading(build: Builder, x: fx.Node, y: fx.Node, rows: fx.Node | int) -> fx.Node:
    """y [T, N] as [..., N]."""
    dims = x.meta["val"].dim()
    if dims == 2:
        return y
    return build.call(aten.reshape.default, y, [*(build.size(x, dim) for dim in range(dims - 1)), rows])
