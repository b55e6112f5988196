"""Casts into the GEMM in front of them, where nobody else would do them for free.

    s24.mm(..., bf16) -> views -> cast to fp32 -> output      ->      s24.mm(..., fp32) -> views -> output

An fp32 x under autocast has such a dX [T, D]: 8 bytes an element become 4, and one rounding goes. Left alone: a cast
that a pointwise kernel reads, because Inductor fuses it there and the GEMM would write twice the bytes; a GEMM with
other readers; dtypes that no kernel of the target writes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, value_of
from s24compile.lowering.products import Product, product_chain
from s24compile.lowering.select import has_kernel
from s24compile.lowering.views import is_view, repeat_views
from s24compile.torch_internals.operators import base_name

aten, prims = torch.ops.aten, torch.ops.prims


def absorb_casts(graph: fx.Graph, target: Target) -> int:
    """`mm` + cast -> `mm` with another `out_dtype`. Returns how many."""
    count = 0
    for cast in [n for n in graph.nodes if is_cast(n)]:
        source = cast.args[0]
        links = product_chain(source) if len(source.users) == 1 else None
        used_by = list(readers(cast))
        if links is None or not used_by or any(reader.op != "output" for reader in used_by):
            continue
        product = Product.of(links[0])
        op, args = product.op("mm"), product.arguments(value_of(cast).dtype)
        if not has_kernel(base_name(op), args, target):
            continue
        wide = Builder(links[0]).call(op, *args)
        build = Builder(cast)
        build.replace_with(repeat_views(build, links, wide))
        for link in reversed(links):
            graph.erase_node(link)
        count += 1
    return count


def is_cast(node: fx.Node) -> bool:
    """Whether a node changes the dtype of its first argument and nothing else."""
    if node.target is prims.convert_element_type.default:
        return True
    keeps_strides = node.kwargs.get("memory_format") in (None, torch.preserve_format)
    if node.target is not aten._to_copy.default or not keeps_strides:
        return False
    before, after = value_of(node.args[0]), value_of(node)
    return bool(before.device == after.device and before.layout == after.layout and before.dtype != after.dtype)


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """What uses a node, seen through views."""
    for user in node.users:
        if is_view(user):
            yield from readers(user)
        else:
            yield user
