"""Packing of gradients: once for all who need it, and fused with what sums them where the target has such a kernel.

    db = sum(dz, 0);  p = s24.mvue_pack(dz, seed)   ->   p, db = s24.mvue_pack_sum(dz, seed)
    dz = s24.mm_dact(...) -> views;  db = sum(dz, 0)   ->   dz, db = s24.mm_dact_sum(...)

The second also where the linear in front of the activation is dense, and its bias gradient autograd's own.

Saves reading dz [T, F] once. Where dz is both made by a GEMM and packed, the GEMM sums: at 16384 x 3072 that costs
8 us, in the packing pass 22 (H100, results/epilogues.json and memory_kernels.json).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls, value_of
from s24compile.lowering.select import has_kernel
from s24compile.lowering.views import base_of, is_view

aten, s24 = torch.ops.aten, torch.ops.s24


def share_packs(graph: fx.Graph, target: Target) -> int:
    """One `mvue_pack` for all that pack the same gradient. Returns how many went.

    p = s24.mvue_pack(dy, seed0); q = s24.mvue_pack(dy, seed1)   ->   both are the first

    Two linears whose outputs are summed have one dY: the projections of attention and feed-forward layer in a parallel
    block. Each estimate stays unbiased; only their errors are no longer independent.
    """
    first: dict[tuple[Any, ...], fx.Node] = {}
    count = 0
    for pack in [n for n in s24_calls(graph) if op_name(n) == "mvue_pack"]:
        g, _, dtype, fmt = pack.args
        value = value_of(g)
        # As text: symbolic sizes have no hash.
        view = str((tuple(value.shape), value.stride(), value.storage_offset()))
        key = (base_of(g), view, dtype, fmt)
        known = first.setdefault(key, pack)
        if known is not pack:
            replace_items(pack, known, (0, 1))
            graph.erase_node(pack)
            count += 1
    graph.eliminate_dead_code()
    return count


def fuse_bias_gradient(graph: fx.Graph, target: Target) -> int:
    """`mvue_pack` and a sum over the same gradient -> `mvue_pack_sum`. Returns how many.

    Leaves to `fuse_sum_into_activation` what a GEMM's epilogue can sum.
    """
    count = 0
    for pack in [n for n in s24_calls(graph) if op_name(n) == "mvue_pack"]:
        maker = base_of(pack.args[0])
        if maker.target is s24.mm_dact.default and has_kernel("mm_dact_sum", maker.args, target):
            continue
        total = _column_sum(pack.args[0])
        if total is None or not has_kernel("mvue_pack_sum", pack.args, target):
            continue
        build = Builder(pack)
        fused = build.call(s24.mvue_pack_sum.default, *pack.args)
        replace_items(pack, fused, (0, 1))
        sums = build.item(fused, 2)
        _move_users_behind(total, sums)
        total.replace_all_uses_with(sums)
        graph.erase_node(total)
        graph.erase_node(pack)
        count += 1
    graph.eliminate_dead_code()
    return count


def fuse_sum_into_activation(graph: fx.Graph, target: Target) -> int:
    """`mm_dact` and a sum over the tokens of its result -> `mm_dact_sum`. Returns how many.

    Runs behind `choose_layouts`, which knows matrices alone.
    """
    count = 0
    for product in [n for n in s24_calls(graph) if op_name(n) == "mm_dact"]:
        total = next((t for view in _as_rows(product) if (t := _column_sum(view, of_dense=True)) is not None), None)
        if total is None or not has_kernel("mm_dact_sum", product.args, target):
            continue
        build = Builder(product)
        both = build.call(s24.mm_dact_sum.default, *product.args)
        sums, like = build.item(both, 1), value_of(total)
        if like.dtype != torch.float32:
            sums = build.call(torch.ops.prims.convert_element_type.default, sums, like.dtype)
        if like.dim() == 2:
            sums = build.call(aten.unsqueeze.default, sums, 0)
        total.replace_all_uses_with(sums)
        graph.erase_node(total)
        build.replace_with(build.item(both, 0))
        count += 1
    graph.eliminate_dead_code()
    return count


def _as_rows(product: fx.Node) -> list[fx.Node]:
    """The views of a GEMM's result [F, T] that are its transpose [T, F]."""
    features, tokens = value_of(product).shape
    found, todo = [], list(product.users)
    while todo:
        node = todo.pop()
        if is_view(node):
            shape = value_of(node).shape
            todo.extend(node.users)
            # [T, F] out of [F, T] by views alone is the transpose, whose last dim is contiguous, or a reshape, for
            # which it is not.
            transposed = len(shape) == 2 and value_of(node).stride() == value_of(product).stride()[::-1]
            if transposed and statically_known_true(shape[0] == tokens) and statically_known_true(shape[1] == features):
                found.append(node)
    return found


def _column_sum(g: Any, *, of_dense: bool = False) -> fx.Node | None:
    """The sum over tokens of `g`: the bias gradient, if somebody asked for it. Of a 2:4 linear, it is [F] in fp32.

    Args:
        of_dense: take a dense linear's too, [1, F] in the dtype of `g`.
    """
    candidates = [user for user in g.users if user.target is torch.ops.prims.convert_element_type.default]
    for source in (g, *candidates):
        for user in source.users:
            if user.target is not aten.sum.dim_IntList:
                continue
            if user.args[1:] == ([0],) and value_of(user).dtype == torch.float32:
                return user
            if of_dense and user.args[1:] == ([0], True):
                return user
    return None


def replace_items(old: fx.Node, new: fx.Node, places: Sequence[int]) -> None:
    """Lets the items of `old` be the items `places` of `new`."""
    for user in list(old.users):
        build = Builder(user)
        index = user.args[1]
        assert isinstance(index, int)
        build.replace_with(build.item(new, places[index]))


def _move_users_behind(node: fx.Node, anchor: fx.Node) -> None:
    """Keeps the graph in order when `anchor`, later in it, takes the place of `node`."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    late = sorted((n for n in _dependents(node) if order[n] < order[anchor]), key=order.__getitem__)
    for dependent in late:
        anchor.append(dependent)
        anchor = dependent


def _dependents(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = list(node.users)
    while todo:
        user = todo.pop()
        if user.op != "output" and user not in found:
            found.add(user)
            todo.extend(user.users)
    return found
