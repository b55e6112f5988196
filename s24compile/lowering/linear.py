"""`s24.linear` -> `s24.mm`: the forward as the one GEMM that it is.

    y[..., N] = s24.linear(x[..., K], [w], values, metadata, values_t, metadata_t, bias, ...)
->  x2 = x.view(T, K); z = s24.mm(values, metadata, N, K, format, x2.t(), bias, "col", dtype); y = z.t().view(..., N)

The dense parameters leave the graph here: nothing reads them, and no cast of a master weight is left. The backward has
been made of `mm` and `mvue_pack` by autograd already.
"""

from __future__ import annotations

import torch
from torch import fx

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls

aten = torch.ops.aten


def lower_linear(graph: fx.Graph, target: Target) -> int:
    """Rewrites every `s24.linear` of a forward graph. Returns how many."""
    found = [node for node in s24_calls(graph) if op_name(node) == "linear"]
    for node in found:
        x, _, values, metadata, _, _, bias, fmt, *_ = node.args
        build = Builder(node)
        assert isinstance(x, fx.Node)
        assert isinstance(values, fx.Node)
        fake_x, dtype = x.meta["val"], values.meta["val"].dtype
        rows, cols = build.size(values, 0), build.size(x, fake_x.dim() - 1)
        flat = x if fake_x.dim() == 2 else build.call(aten.reshape.default, x, [-1, cols])
        if fake_x.dtype != dtype:
            flat = build.call(torch.ops.prims.convert_element_type.default, flat, dtype)
        columns = build.call(aten.permute.default, flat, [1, 0])
        z = build.call(torch.ops.s24.mm.default, values, metadata, rows, cols, fmt, columns, bias, "col", dtype)
        y = build.call(aten.permute.default, z, [1, 0])
        if fake_x.dim() != 2:
            leading = [build.size(x, dim) for dim in range(fake_x.dim() - 1)]
            y = build.call(aten.reshape.default, y, [*leading, rows])
        build.replace_with(y)
    return len(found)
