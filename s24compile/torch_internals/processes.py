"""The store in which the processes of a job leave notes for each other, and who trains the same model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from s24compile.torch_internals.part import Part

PARTS = (
    Part("torch.distributed.distributed_c10d._get_default_store", "sparse state that one rank alone has loaded is not "
         "noticed"),
)  # fmt: skip


def store() -> Any:
    """The store of the default process group."""
    return dist.distributed_c10d._get_default_store()


def data_parallel_groups(parameter: Tensor) -> Iterator[Any]:
    """The process groups of the DistributedDataParallel modules that hold a parameter. Looks through all objects of
    Python, once for each loading of a state."""
    if not dist.is_initialized():
        return
    from torch.nn.parallel import DistributedDataParallel

    for found in gc.get_objects():
        if issubclass(type(found), DistributedDataParallel) and any(p is parameter for p in found.parameters()):
            yield found.process_group
