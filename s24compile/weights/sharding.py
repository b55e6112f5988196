"""Parameters that FSDP2 (`fully_shard`) gathers for a forward: who they stand for. A leaf.

A compiled graph sees a plain unsharded Parameter, while module, optimizer and checkpoint hold a sharded DTensor: two
objects that nothing public connects. What hangs on the Parameter (masks, steps, masked decay) would reach nobody.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import Parameter

from s24compile.torch_internals.tensors import fsdp_parameters

FSDP_SENTENCE = (
    "its weight is gathered by FSDP2 (fully_shard) for each forward, while the optimizer holds the shards: masked "
    "decay, step counts and s24compile.state_dict would not reach them; use DistributedDataParallel, whose parameters "
    "stay whole"
)


def sharded_master(parameter: Tensor) -> Parameter | None:
    """The shard, on a module and in an optimizer, that a gathered parameter stands for; None for any other tensor."""
    return next((shard for gathered, shard in fsdp_parameters() if gathered is parameter), None)
