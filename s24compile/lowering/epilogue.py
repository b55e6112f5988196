"""Activations into the epilogue of the GEMM in front of them, where the target has such a kernel.

forward    z = s24.mm(w, x^T, bias) -> views;  h = s24.act(z)  ->  z, h = s24.mm_act(w, x^T, bias) -> views
backward   dh = s24.mm(w^T, dy^T) -> views;  dz = s24.act_backward(dh, z)  ->  dz = s24.mm_dact(w^T, dy^T, z^T) -> views
gated      the same with glu -> mm_glu (of a weight packed in a gated format) and glu_backward -> mm_dglu

Each saves a read and a write of [T, F] or more. Left alone: a dh that something else reads, a z of another layout than
the GEMM's result, mixed dtypes, and targets whose only kernel is the reference (there Inductor fuses the activation
with its neighbours, see `lower_activations`).
"""

from __future__ import annotations

import torch
from torch import fx

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls, value_of
from s24compile.lowering.select import has_kernel
from s24compile.lowering.views import as_operand_layout, chain_from, is_plain, repeat_views, with_leading_dims

s24 = torch.ops.s24


def fuse_activation(graph: fx.Graph, target: Target) -> int:
    """`mm` + `act` -> `mm_act`. Returns how many."""
    count = 0
    for act in [n for n in s24_calls(graph) if op_name(n) == "act"]:
        z, kind = act.args
        links = chain_from(z, s24.mm.default) if isinstance(z, fx.Node) else None
        if links is None:
            continue
        values, metadata, rows, cols, fmt, b, bias, layout, dtype = links[0].args
        args = (values, metadata, rows, cols, fmt, b, bias, kind, layout)
        if dtype != value_of(b).dtype or not has_kernel("mm_act", args, target):
            continue
        # In the GEMM's place: z may have readers in front of the activation.
        build = Builder(links[0])
        both = build.call(s24.mm_act.default, *args)
        links[0].replace_all_uses_with(build.item(both, 0))
        after = Builder(act)
        after.replace_with(repeat_views(after, links, build.item(both, 1)))
        graph.erase_node(links[0])
        count += 1
    return count


def fuse_activation_backward(graph: fx.Graph, target: Target) -> int:
    """`mm` + `act_backward` -> `mm_dact`. Returns how many."""
    count = 0
    for backward in [n for n in s24_calls(graph) if op_name(n) == "act_backward"]:
        dh, z, kind = backward.args
        assert isinstance(dh, fx.Node)
        assert isinstance(z, fx.Node)
        links = chain_from(dh, s24.mm.default) if len(dh.users) == 1 else None
        if links is None:
            continue
        values, metadata, rows, cols, fmt, b, bias, layout, dtype = links[0].args
        if bias is not None or layout != "col" or dtype != value_of(b).dtype or dtype != value_of(z).dtype:
            continue
        if not value_of(z).is_contiguous():
            continue
        build = Builder(backward)
        z_operand = as_operand_layout(build, links, z)
        args = (values, metadata, rows, cols, fmt, b, z_operand, kind, layout)
        if z_operand is None or not has_kernel("mm_dact", args, target):
            continue
        build.replace_with(repeat_views(build, links, build.call(s24.mm_dact.default, *args)))
        count += 1
    graph.eliminate_dead_code()
    return count


def fuse_glu(graph: fx.Graph, target: Target) -> int:
    """`mm` + `glu` -> `mm_glu`. Returns how many."""
    count = 0
    for glu in [n for n in s24_calls(graph) if op_name(n) == "glu"]:
        z, act, gate = glu.args
        links = chain_from(z, s24.mm.default) if isinstance(z, fx.Node) else None
        if links is None or not is_plain(links):
            continue
        values, metadata, rows, cols, fmt, b, bias, layout, dtype = links[0].args
        args = (values, metadata, rows, cols, fmt, b, act, gate)
        if bias is not None or layout != "col" or dtype != value_of(b).dtype or not has_kernel("mm_glu", args, target):
            continue
        build = Builder(links[0])
        both = build.call(s24.mm_glu.default, *args)
        links[0].replace_all_uses_with(build.item(both, 0))
        after = Builder(glu)
        after.replace_with(with_leading_dims(after, links, build.item(both, 1)))
        graph.erase_node(links[0])
        count += 1
    return count


def fuse_glu_backward(graph: fx.Graph, target: Target) -> int:
    """`mm` + `glu_backward` -> `mm_dglu`. Returns how many."""
    count = 0
    for backward in [n for n in s24_calls(graph) if op_name(n) == "glu_backward"]:
        dh, z, act, gate = backward.args
        assert isinstance(dh, fx.Node)
        assert isinstance(z, fx.Node)
        links = chain_from(dh, s24.mm.default) if len(dh.users) == 1 else None
        if links is None:
            continue
        values, metadata, rows, cols, fmt, b, bias, layout, dtype = links[0].args
        if bias is not None or layout != "col" or dtype != value_of(b).dtype or dtype != value_of(z).dtype:
            continue
        if not value_of(z).is_contiguous():
            continue
        build = Builder(backward)
        z_operand = as_operand_layout(build, links, z)
        args = (values, metadata, rows, cols, fmt, b, z_operand, act, gate)
        if z_operand is None or not has_kernel("mm_dglu", args, target):
            continue
        build.replace_with(with_leading_dims(build, links, build.call(s24.mm_dglu.default, *args)))
        count += 1
    graph.eliminate_dead_code()
    return count
