"""A residual into the GEMM in front of it, where nobody else would add it for free.

    y = s24.mm(w, h^T) -> views;  r = x + y -> output      ->      r = s24.mm_add(w, h^T, x^T) -> views -> output

Legend: T tokens, D model width; x, y, r [..., D].

Such a sum ends a block that is compiled by itself. Written in fp32 it costs 8 bytes an element instead of 12, and one
kernel less. Left alone: a sum that a pointwise kernel reads (the next layer norm), because Inductor adds there while it
reads x anyway; scaled sums; broadcasts; a GEMM with a bias or with other readers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, value_of
from s24compile.lowering.casts import is_cast, readers
from s24compile.lowering.products import Product, product_chain
from s24compile.lowering.select import has_kernel
from s24compile.lowering.views import as_operand_layout, is_plain, with_leading_dims
from s24compile.torch_internals.graphs import is_contiguous_or_false
from s24compile.torch_internals.operators import base_name

aten = torch.ops.aten


def absorb_residuals(graph: fx.Graph, target: Target) -> int:
    """`mm` + `add` -> `mm_add`. Returns how many."""
    count = 0
    for add in graph.find_nodes(op="call_function", target=aten.add.Tensor):
        found = [(y, x) for y, x in (add.args, add.args[::-1]) if _product(y) is not None]
        used_by = list(readers(add))
        if not found or add.kwargs or not used_by or any(reader.op != "output" for reader in used_by):
            continue
        y, x = found[0]
        links = _product(y)
        assert links is not None
        product, result = Product.of(links[0]), value_of(add)
        if product.bias is not None or product.layout != "col" or not is_plain(links) or not _fits(x, result):
            continue
        build, fused = Builder(add), product.op("mm_add")
        c = as_operand_layout(build, links, x)
        args = (*product.operands, c, *product.exact)
        if c is None or not has_kernel(base_name(fused), args, target):
            continue
        build.replace_with(with_leading_dims(build, links, build.call(fused, *args)))
        count += 1
    graph.eliminate_dead_code()
    return count


def _product(y: Any) -> list[fx.Node] | None:
    """[mm, view, ...] that end in `y`, or in what `y` is a cast of, if nothing else reads them."""
    if not isinstance(y, fx.Node) or len(y.users) != 1:
        return None
    source = y.args[0] if is_cast(y) else y
    if not isinstance(source, fx.Node) or len(source.users) != 1:
        return None
    return product_chain(source)


def _fits(x: Any, result: torch.Tensor) -> bool:
    """Whether x is a tensor that C can be: of the sum's shape and dtype, its rows contiguous."""
    if not isinstance(x, fx.Node):
        return False
    value = value_of(x)
    if not isinstance(value, torch.Tensor) or value.dtype != result.dtype or value.dim() != result.dim():
        return False
    same = all(statically_known_true(a == b) for a, b in zip(value.shape, result.shape, strict=True))
    return same and is_contiguous_or_false(value)
