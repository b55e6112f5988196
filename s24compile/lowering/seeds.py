"""Seeds of the MVUE without a kernel of their own.

Inductor keeps one buffer of random seeds per graph, and makes of each `torch.randint` a kernel that hashes one of them.
The seed of an s24 op is hashed by the op's own Philox, so the buffer's entry does as well, and it is there already. In
a GPT of 12 layers this leaves out 24 kernels, which differ in one constant each and are compiled one by one.
"""

from __future__ import annotations

import torch
from torch import fx

from s24compile.kernels.target import Target
from s24compile.lowering.build import Builder, s24_calls

aten, prims = torch.ops.aten, torch.ops.prims


def take_seeds(graph: fx.Graph, target: Target) -> int:
    """Gives s24 ops entries of Inductor's seed buffer.

    Before: seed i64[] = inductor_lookup_seed(seeds i64[n], i); draw i64[1] = inductor_randint(0, 2**62, [1], seed);
    s24.mvue_pack(g, draw, ...).
    After: draw i64[1] = slice(seeds, 0, i, i + 1). Entries are uniform over all of int64; each has one use.

    Left alone: a draw that something else than an s24 op reads, and graphs that are not Inductor's (no seed buffer).
    """
    ours = set(s24_calls(graph))
    taken = 0
    for draw in graph.find_nodes(op="call_function", target=prims.inductor_randint.default):
        lookup = draw.args[3]
        if list(draw.args[2]) != [1] or not ours.issuperset(draw.users):
            continue
        seeds, index = lookup.args
        builder = Builder(draw)
        builder.replace_with(builder.call(aten.slice.Tensor, seeds, 0, index, index + 1))
        if not lookup.users:
            graph.erase_node(lookup)
        taken += 1
    return taken
