"""Parameters that FSDP2 (`fully_shard`) gathers for a forward: who they stand for. A leaf.

A compiled graph sees a plain unsharded Parameter, while module, optimizer and checkpoint hold a sharded DTensor: two
objects that nothing public connects. What hangs on the Parameter (masks, steps, masked decay) would reach nobody.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.nn import Parameter

FSDP_SENTENCE = (
    "its weight is gathered by FSDP2 (fully_shard) for each forward, while the optimizer holds the shards: masked "
    "decay, step counts and s24compile.state_dict would not reach them; use DistributedDataParallel, whose parameters "
    "stay whole"
)


def sharded_master(parameter: Tensor) -> Parameter | None:
    """The shard, on a module and in an optimizer, that a gathered parameter stands for; None for any other tensor."""
    for held in _fsdp_parameters():
        if getattr(held, "_unsharded_param", None) is parameter:
            master: Parameter = held.sharded_param
            return master
    return None


def _fsdp_parameters() -> Iterator[Any]:
    """Torch's own records, of every module of this process that `fully_shard` was applied to."""
    states = sys.modules.get("torch.distributed._composable_state")
    for reference in list(states._module_state_mapping.values()) if states is not None else ():
        state = reference()
        groups = getattr(state, "_fsdp_param_groups", None)  # torch 2.11 has at most one, under the other name
        if groups is None:
            groups = [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            yield from getattr(group, "fsdp_params", ())
