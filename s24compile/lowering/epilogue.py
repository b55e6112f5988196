"""Activations into the epilogue of the GEMM in front of them, where the target has such a kernel.

forward    z = s24.mm(w, x^T, bias) -> views;  h = s24.act(z)  ->  z, h = s24.mm_act(w, x^T, bias) -> views
backward   dh = s24.mm(w^T, dy^T) -> views;  dz = s24.act_backward(dh, z)  ->  dz = s24.mm_dact(w^T, dy^T, z^T) -> views
gated      the same with glu -> mm_glu (of a weight packed in a gated format) and glu_backward -> mm_dglu

The same with s24.scaled_mm -> scaled_mm_act and so on, whose epilogues also find the amax by which H, or dZ, will be
quantised.

Each saves a read and a write of [T, F] or more. Left alone: a dh that something else reads, a z of another layout than
the GEMM's result, mixed dtypes, and targets whose only kernel is the reference (there Inductor fuses the activation
with its neighbours, see `lower_activations`).
"""

from __future__ import annotations

from torch import fx

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls, value_of
from s24compile.lowering.products import Product, give_amax, product_chain
from s24compile.lowering.select import has_kernel
from s24compile.lowering.views import as_operand_layout, is_plain, repeat_views, with_leading_dims
from s24compile.torch_internals.operators import base_name


def fuse_activation(graph: fx.Graph, target: Target) -> int:
    """`mm` + `act` -> `mm_act`. Returns how many."""
    return _fuse_forward(graph, target, "act", "mm_act")


def fuse_glu(graph: fx.Graph, target: Target) -> int:
    """`mm` + `glu` -> `mm_glu`. Returns how many."""
    return _fuse_forward(graph, target, "glu", "mm_glu")


def fuse_activation_backward(graph: fx.Graph, target: Target) -> int:
    """`mm` + `act_backward` -> `mm_dact`. Returns how many."""
    return _fuse_backward(graph, target, "act_backward", "mm_dact")


def fuse_glu_backward(graph: fx.Graph, target: Target) -> int:
    """`mm` + `glu_backward` -> `mm_dglu`. Returns how many."""
    return _fuse_backward(graph, target, "glu_backward", "mm_dglu")


def _fuse_forward(graph: fx.Graph, target: Target, name: str, fused_name: str) -> int:
    gated, count = name == "glu", 0
    for node in [n for n in s24_calls(graph) if op_name(n) == name]:
        z, *settings = node.args
        links = product_chain(z) if isinstance(z, fx.Node) else None
        if links is None:
            continue
        product = Product.of(links[0])
        if gated and (product.bias is not None or product.layout != "col" or not is_plain(links)):
            continue
        args = (*product.operands, *settings) if gated else (*product.operands, product.bias, *settings, product.layout)
        args = (*args, product.dtype, *product.exact) if product.eight_bit else args
        fused = product.op(fused_name)
        if not product.in_compute_dtype() or not has_kernel(base_name(fused), args, target):
            continue
        # In the GEMM's place: z may have readers in front of the activation.
        build = Builder(links[0])
        both = build.call(fused, *args)
        links[0].replace_all_uses_with(build.item(both, 0))
        after = Builder(node)
        h = build.item(both, 1)
        if product.eight_bit:
            give_amax(node, build.item(both, 2))
        after.replace_with(with_leading_dims(after, links, h) if gated else repeat_views(after, links, h))
        graph.erase_node(links[0])
        count += 1
    return count


def _fuse_backward(graph: fx.Graph, target: Target, name: str, fused_name: str) -> int:
    gated, count = name == "glu_backward", 0
    for node in [n for n in s24_calls(graph) if op_name(n) == name]:
        dh, z, *settings = node.args
        assert isinstance(dh, fx.Node)
        assert isinstance(z, fx.Node)
        links = product_chain(dh) if len(dh.users) == 1 else None
        if links is None:
            continue
        product = Product.of(links[0])
        if product.bias is not None or product.layout != "col" or not product.in_compute_dtype():
            continue
        if product.dtype != value_of(z).dtype or not value_of(z).is_contiguous():
            continue
        build, fused = Builder(node), product.op(fused_name)
        z_operand = as_operand_layout(build, links, z)
        args = (*product.operands, z_operand, *settings, *(() if gated else (product.layout,)))
        if product.eight_bit:
            args = (*args, *(() if gated else (False,)), *product.exact)  # without sums: fuse_sum_into_activation
        if z_operand is None or not has_kernel(base_name(fused), args, target):
            continue
        dz = build.call(fused, *args)
        if product.eight_bit:
            give_amax(node, build.item(dz, 1 if gated else 2))
            dz = build.item(dz, 0)
        build.replace_with(with_leading_dims(build, links, dz))
        count += 1
    graph.eliminate_dead_code()
    return count
