"""`s24.activation_layer` -> its dense product, the packing of its hidden state, and its 2:4 product.

    y[..., D], values, metadata, counts = s24.activation_layer(x[..., D], [w1], w1c, b1, keep, [w2], w2c, b2, ...)
->  z = addmm(b1, x.view(T, D), w1c.t())                                             dense, Inductor's
    values, metadata, counts = s24.activation_pack(z, keep.view(T, F), act, scale, format)
    y = (s24.mm(values, metadata, T, F, format, w2c.t(), None, "row", dtype) + b2).view(..., D)

The backward has been made of `mm`, `activation_backward_pack` and `unpack` by autograd already. Where a backward graph
recomputes a layer (activation checkpointing), it is lowered as in a forward one, without the product that nobody reads.

Legend: T tokens, D model width, F hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls

aten, prims, s24 = torch.ops.aten, torch.ops.prims, torch.ops.s24


def lower_hidden(graph: fx.Graph, target: Target) -> int:
    """Rewrites every `s24.activation_layer`. Returns how many."""
    found = [node for node in s24_calls(graph) if op_name(node) == "activation_layer"]
    for node in found:
        _lower(node)
    return len(found)


def _lower(node: fx.Node) -> None:
    x, _, up, up_bias, keep, _, down, down_bias, act, scale, fmt, up_layout, down_layout, *_ = node.args
    build = Builder(node)
    assert isinstance(x, fx.Node)
    assert isinstance(down, fx.Node)
    dtype = x.meta["val"].dtype
    z = _flat(build, x)
    if up is not None:
        columns = _turned(build, up, up_layout)
        if up_bias is None:
            z = build.call(aten.mm.default, z, columns)
        else:
            z = build.call(aten.addmm.default, _cast(build, up_bias, dtype), z, columns)
    state = build.call(s24.activation_pack.default, z, _flat(build, keep), act, scale, fmt)
    items = [build.item(state, index) for index in range(3)]
    y = None
    if any(user.args[1] == 0 and user.users for user in node.users):
        tokens, hidden = build.size(z, 0), build.size(z, 1)
        product = (*items[:2], tokens, hidden, fmt, _turned(build, down, down_layout), None, "row", dtype)
        y = build.call(s24.mm.default, *product)
        if down_bias is not None:
            y = build.call(aten.add.Tensor, y, _cast(build, down_bias, dtype))
        if x.meta["val"].dim() != 2:
            leading = [build.size(x, dim) for dim in range(x.meta["val"].dim() - 1)]
            y = build.call(aten.reshape.default, y, [*leading, build.size(y, 1)])
    for user in list(node.users):
        index = user.args[1]
        assert isinstance(index, int)
        result = (y, *items)[index]
        if result is not None:
            user.replace_all_uses_with(result)
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _flat(build: Builder, x: Any) -> Any:
    """[..., F] as [T, F]."""
    if x is None or x.meta["val"].dim() == 2:
        return x
    return build.call(aten.reshape.default, x, [-1, build.size(x, x.meta["val"].dim() - 1)])


def _turned(build: Builder, weight: Any, layout: Any) -> fx.Node:
    """A weight as the right operand of a product."""
    return build.call(aten.permute.default, weight, [1, 0]) if layout == "out_in" else weight


def _cast(build: Builder, bias: Any, dtype: torch.dtype) -> fx.Node:
    if bias.meta["val"].dtype == dtype:
        return bias  # type: ignore[no-any-return]
    return build.call(prims.convert_element_type.default, bias, dtype)
