"""Quantising once for all who read a tensor in eight bits, and sums where a GEMM has them.

    a = s24.amax(x); q = s24.quantise(x, a, e4m3, "row"); b = s24.amax(x); p = s24.quantise(x, b, e4m3, "col")
->  a = s24.amax(x); q, p = s24.quantise(x, a, e4m3, "both")

    dz = s24.scaled_mm_dact(..., sums=False) -> views;  ..., db = s24.quantise_pack(dz, ..., sums=True)
->  dz, db = s24.scaled_mm_dact(..., sums=True) -> views;  ... = s24.quantise_pack(dz, ..., sums=False)

Linears that read one x are those of gate and up where they are not stacked, and of query, key and value; linears whose
outputs are summed have one dY. The sums cost an epilogue less than the pass that packs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, op_name, s24_calls, value_of
from s24compile.lowering.packing import replace_items
from s24compile.lowering.select import has_kernel
from s24compile.lowering.views import base_of

s24 = torch.ops.s24
SAME: dict[str, tuple[int, ...]] = {"amax": (), "quantise": (1, 2), "quantise_pack": (1, 3, 4)}
"""Op to the places of those arguments, beside the tensor, in which calls must agree to be one. The seed is none of
them: each estimate stays unbiased, and only their errors are no longer independent."""


def share_quantised(graph: fx.Graph, target: Target) -> int:
    """One `amax`, `quantise` and `quantise_pack` for all of one tensor. Returns how many went."""
    return sum(_share(graph, name) for name in SAME)


def _share(graph: fx.Graph, name: str) -> int:
    """The first of those that read the same gives all that any of them does."""
    groups: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in [n for n in s24_calls(graph) if op_name(n) == name]:
        value = value_of(node.args[0])
        # As text: symbolic sizes have no hash.
        view = str((tuple(value.shape), value.stride(), value.storage_offset()))
        same = [node.args[place] for place in SAME[name]]
        groups.setdefault((base_of(node.args[0]), view, *same), []).append(node)
    for first, *others in groups.values():
        if not others:
            continue
        if name == "amax":
            for other in others:
                Builder(other).replace_with(first)
            continue
        wanted = [node.args for node in (first, *others)]
        if name == "quantise":
            layouts = {args[3] for args in wanted}
            last: tuple[Any, ...] = (layouts.pop() if len(layouts) == 1 else "both",)
        else:
            last = tuple(any(args[place] for args in wanted) for place in (5, 6))
        joined = Builder(first).call(first.target, *first.args[: -len(last)], *last)
        for node in (first, *others):
            replace_items(node, joined, range(6))
            graph.erase_node(node)
    return sum(len(group) - 1 for group in groups.values())


def sum_in_epilogue(graph: fx.Graph, target: Target) -> int:
    """A bias gradient from `scaled_mm_dact` instead of `quantise_pack`. Returns how many."""
    count = 0
    for pack in [n for n in s24_calls(graph) if op_name(n) == "quantise_pack" and n.args[6]]:
        item = base_of(pack.args[0])
        maker = item.args[0] if isinstance(item, fx.Node) and item.args else None
        if not isinstance(maker, fx.Node) or maker.target is not s24.scaled_mm_dact.default:
            continue
        args = (*maker.args[:-2], True, maker.args[-1])
        if not has_kernel("scaled_mm_dact", args, target):
            continue
        build = Builder(maker)
        summed = build.call(maker.target, *args)
        replace_items(maker, summed, range(3))
        graph.erase_node(maker)
        sums = Builder(pack).item(summed, 1)
        for user in list(pack.users):
            if user.args[1] == 5:
                Builder(user).replace_with(sums)
        without = Builder(pack).call(pack.target, *pack.args[:-1], False)
        replace_items(pack, without, range(6))
        graph.erase_node(pack)
        count += 1
    return count
