"""One provider per s24 node, chosen from fake tensors and the target, recorded on the node.

    s24.mm(...)   ->   s24_cutlass.mm(...)        the same op with its kernel settled, see kernels/ops/direct.py

What only the reference takes keeps its name; its eager implementation asks the same `providers.choose` as it runs.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import fx

from s24compile.errors import LoweringError, TargetError
from s24compile.kernels import providers
from s24compile.kernels.arch import where
from s24compile.kernels.ops.direct import direct
from s24compile.kernels.target import Target
from s24compile.lowering.build import op_name, s24_calls, value_of

log = logging.getLogger(__name__)

PROVIDER = "s24_provider"
"""Key of `node.meta` under which the chosen provider stands."""


def has_kernel(op: str, args: Sequence[Any], target: Target) -> bool:
    """Whether `target` has a kernel of its own for a call on nodes: what a fusion asks before it makes the op."""
    return providers.choose(op, *value_of(tuple(args)), target=target).provider.name != "reference"


def gated_format(target: Target, op: str = "mm_glu") -> str:
    """The format of weights whose GEMM `op` computes a GLU in its epilogue; empty where `target` has no such kernel."""
    return target.arch.gated_format if providers.serving(target, (op,))[op] != "reference" else ""


def refuse_eight_bit(target: Target) -> str:
    """Why `target` multiplies no 2:4 operands of eight-bit floats, as a clause; empty if it does, as a CPU does."""
    if target.capability is None or providers.serving(target, ("scaled_mm",))["scaled_mm"] != "reference":
        return ""
    if target.arch.fp8 and "cutlass" in target.arch.providers:
        return (
            "the 2:4 kernels for eight-bit floats are CUTLASS's, which can neither be found nor built on this machine"
        )
    return f"the 2:4 kernels for eight-bit floats are for {where('cutlass')}, and this is {target}"


def select(graph: fx.Graph, target: Target) -> int:
    """Chooses and records the provider of every s24 node.

    Returns:
        How many nodes have one.

    Raises:
        LoweringError: an op that no provider takes, or that should have been lowered before.
    """
    nodes = s24_calls(graph)
    for node in nodes:
        name = op_name(node)
        if name not in providers.FOLDER_OF:
            raise LoweringError(
                node=node.name, found=f"s24::{name} was not lowered to a kernel",
                accepted="report this graph: every op in front of `select` has a pass that lowers it",
            )  # fmt: skip
        try:
            choice = providers.choose(name, *value_of(node.args), target=target)
        except TargetError as error:
            raise LoweringError(node=node.name, found=str(error), accepted="choose another target") from error
        node.meta[PROVIDER] = choice.provider.name
        node.target = direct(choice.provider.name, name) or node.target
        log.debug("%s: s24::%s by %s %s", node.name, name, choice.provider.name, dict(choice.refused) or "")
    return len(nodes)
