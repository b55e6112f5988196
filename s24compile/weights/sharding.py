"""What a weight is to a compiled graph, to the optimizer, and which part of the one the other holds.

    plain   compute = given                    master = given                          shard = None
    FSDP2   compute = given, gathered          master = sharded DTensor                shard = part of compute
    TP      compute = given's local tensor     master = given, a DTensor               shard = None
    2D      compute = gathered DTensor's local tensor    master = sharded DTensor      shard = part of compute

"Given" is what arrives at the graph, "compute" what it multiplies by, "master" what modules (outside of a forward),
optimizers and checkpoints hold. State belongs to the master.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.torch_internals import fsdp

PARTS_SENTENCE = (
    "its weight is gathered by FSDP2 (fully_shard), and this version of torch lacks a part of FSDP2 by which masked "
    "decay and step counts reach the shards; use a version from 2.11 to 2.13"
)
CUDA_GRAPHS_SENTENCE = (
    "its weight is gathered by FSDP2 (fully_shard), which frees it and its packed form after each use, and CUDA graphs "
    'would go on reading where they were; leave mode="reduce-overhead", "max-autotune" and triton.cudagraphs alone, or '
    'take "max-autotune-no-cudagraphs"'
)
FSDP1_SENTENCE = (
    "its weight is a view of a flat parameter (FullyShardedDataParallel), which is not rewritten: it trains dense; use "
    "FSDP2, torch.distributed.fsdp.fully_shard"
)
GATHERING_SENTENCES = (PARTS_SENTENCE, CUDA_GRAPHS_SENTENCE, FSDP1_SENTENCE)


@dataclasses.dataclass(frozen=True)
class Shard:
    """Which part of the weight that graphs multiply by this process steps: `length` of its dim, from `start` on."""

    dim: int
    start: int
    length: int

    def of(self, whole: Tensor) -> Tensor:
        """That part of a tensor of the whole weight's shape."""
        return whole.narrow(self.dim, self.start, self.length)


def local(tensor: Tensor) -> Tensor:
    """The plain tensor that this process holds of a DTensor; any other tensor itself."""
    held = fsdp.local_tensor(tensor)
    return tensor if held is None else held


def is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor."""
    return fsdp.local_tensor(tensor) is not None


def is_sharded(given: Tensor) -> bool:
    """Whether graphs get another tensor than the optimizer, or multiply by another than they get."""
    return is_distributed(given) or fsdp.record_of(given) is not None


def is_gathered(given: object) -> bool:
    """Whether FSDP2 gathers it for each use."""
    return isinstance(given, Parameter) and fsdp.record_of(given) is not None


def master_of(given: Tensor) -> Tensor:
    """What modules, optimizers and checkpoints hold of a Parameter that arrives at a graph."""
    record = fsdp.record_of(given)
    return given if record is None else record.sharded_param


def gathered_masters() -> dict[int, Parameter]:
    """id of each Parameter that FSDP2 has gathered at least once -> its master; empty where it is not used."""
    return fsdp.masters() if fsdp.is_used() else {}


def masters_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """`master_of` for many at once."""
    known = gathered_masters()
    return [known.get(id(parameter), parameter) for parameter in parameters]


def shape_of(master: Tensor) -> tuple[int, ...]:
    """The shape of what graphs multiply by, of a Parameter as modules, optimizers and checkpoints hold it."""
    if not is_distributed(master):
        return tuple(master.shape)
    record = fsdp.record_holding(master)
    return tuple(local(master).shape) if record is None else fsdp.whole_shape(record)


def whole_of(master: Tensor) -> Tensor:
    """All of what graphs multiply by, in the dtype that the optimizer holds. Under FSDP2 it is gathered for the
    occasion, which all processes must do together."""
    record = fsdp.record_holding(master) if is_distributed(master) else None
    held = local(master).detach()
    return held if record is None else fsdp.whole_of(record)


def as_computed(master: Tensor, whole: Tensor) -> Tensor:
    """The whole weight in the dtype to which FSDP2 rounds it before graphs see it (MixedPrecisionPolicy)."""
    record = fsdp.record_holding(master) if is_distributed(master) else None
    dtype = None if record is None else record.param_dtype
    return whole if dtype is None else whole.to(dtype)


def any_process(answer: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether the answer is yes in any of the processes that hold parts of these tensors, which all must ask together.

    Without a word to other processes where no tensor is sharded.
    """
    meshes = {tensor.device_mesh for tensor in tensors if hasattr(tensor, "device_mesh")}
    for mesh in meshes:
        said = torch.tensor([answer], dtype=torch.int32, device=mesh.device_type)
        for dim in range(mesh.ndim):
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, mesh.get_group(dim))
        answer = bool(said)
    return answer


def data_parallel_mesh(master: Tensor) -> Any:
    """The mesh of the processes among which FSDP2 shares a Parameter; None of any other one."""
    record = fsdp.record_holding(master) if is_distributed(master) else None
    return None if record is None else record.mesh_info.mesh


def shard_of(given: Tensor) -> Shard | None:
    """Which part of what the graph multiplies by its master holds; None for all of it."""
    record = fsdp.record_of(given)
    return None if record is None else Shard(*fsdp.shard_of(record))


def problem_of_gathering(given: Tensor, *, cuda_graphs: bool) -> str:
    """Why a weight has to stay dense because FSDP gathers it; "" where it need not.

    Args:
        cuda_graphs: whether the graph is replayed from CUDA graphs.
    """
    if fsdp.is_of_fsdp1(given):
        return FSDP1_SENTENCE
    record = fsdp.record_of(given)
    if record is None:
        return ""
    if fsdp.missing_part(record) is not None:
        return PARTS_SENTENCE
    return CUDA_GRAPHS_SENTENCE if cuda_graphs else ""
