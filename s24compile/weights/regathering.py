"""Before the backward of a graph whose weights FSDP2 has freed since: packs what it has gathered again.

FSDP2 gathers in hooks on tensors, the outputs of its modules; those run before the hooks of the node that made the
outputs of a graph, which is where this is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from s24compile.errors import ModelError
from s24compile.weights.packing import pack_again
from s24compile.weights.sharded_operand import ShardedOperand, Stamp

STEPPED_SENTENCE = (
    "an optimizer stepped it, its mask was searched anew, or it was written, between this forward and its backward, "
    "which needs what the forward multiplied by"
)
FREED_SENTENCE = "FSDP2 has freed it after the forward, and has not gathered it for the backward"


def pack_before_backward(results: Iterable[Any], operands: Sequence[tuple[ShardedOperand, bool]]) -> None:
    """Arranges it for one call of a graph.

    Args:
        results: what the call returned.
        operands: the packed weights that it used and FSDP2 frees, and whether W^T is needed of them.
    """
    if not torch.is_grad_enabled():
        return
    hook = _hook([(operand, transpose, operand.stamp()) for operand, transpose in operands])
    for node in {t.grad_fn for t in results if isinstance(t, torch.Tensor) and t.grad_fn is not None}:
        node.register_prehook(hook)


def _hook(used: Sequence[tuple[ShardedOperand, bool, Stamp]]) -> Callable[[Any], None]:
    def pack(_: Any) -> None:
        freed: dict[ShardedOperand, bool] = {}
        for operand, transpose, stamp in used:
            if operand.stamp() != stamp:
                raise _error(
                    operand, STEPPED_SENTENCE, "run each backward before the step of the optimizer that follows it"
                )
            if not operand.freed:
                continue
            if operand.lacks_weight:
                raise _error(
                    operand, FREED_SENTENCE,
                    "leave set_unshard_in_backward(True), FSDP2's default, for modules with sparse weights",
                )  # fmt: skip
            freed[operand] = transpose
        if freed:
            pack_again(freed)

    return pack


def _error(operand: ShardedOperand, found: str, accepted: str) -> ModelError:
    names = " and ".join(repr(weight.name) for weight in operand.weights)
    return ModelError(what=f"the backward through weight {names}", found=found, accepted=accepted)
