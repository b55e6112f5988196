"""FSDP2's (`fully_shard`) own records of the parameters that it gathers: all of it that torch keeps to itself. A leaf.

A compiled graph gets the gathered Parameter, the same object in every step, whose storage is emptied when FSDP2
reshards; modules, optimizers and checkpoints hold a sharded DTensor, the master. Nothing public connects the two.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from s24compile.torch_internals.part import Part

PARTS = (
    Part("torch.distributed._composable_state._module_state_mapping", "weights that FSDP2 gathers are taken for others "
         "than their shards"),
    Part("torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam.free_unsharded_param", "packed weights are not "
         "freed with those that FSDP2 gathers"),
    Part("torch.autograd._unsafe_preserve_version_counter", "a backward is told that its packed weights were written"),
    Part("torch.distributed.tensor._utils.compute_local_shape_and_global_offset", "weights under FSDP2 and tensor "
         "parallel are not baked"),
)  # fmt: skip
FIELDS = (
    "sharded_param", "sharded_size", "padded_sharded_param_size", "fsdp_placement", "mesh_info", "param_dtype",
    "_orig_size", "_unsharded_inner_tensors", "_unsharded_dtensor_spec",
)  # fmt: skip
"""What is read of a record; instances alone have it."""

_RECORDS: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Any]]] = {}
"""By id of a gathered Parameter: that, and its record."""


def local_tensor(tensor: Tensor) -> Tensor | None:
    """The plain tensor that this process holds of a DTensor, the same object each time; None of any other tensor."""
    return getattr(tensor, "_local_tensor", None)


def is_of_fsdp1(tensor: Tensor) -> bool:
    """Whether it is a view of a flat parameter, as FullyShardedDataParallel makes one for each weight and forward."""
    base = getattr(tensor, "_base", None)
    return base is not None and getattr(base, "_is_flat_param", False) is True


def whole_shape(record: Any) -> tuple[int, ...]:
    """The shape of what is gathered, of which the processes of FSDP2 hold parts."""
    return tuple(record._orig_size)


def is_used() -> bool:
    """Whether any module of this process is under FSDP2."""
    return any(True for _ in _states())


def record_of(parameter: Tensor) -> Any | None:
    """FSDP2's record of a gathered Parameter; None for any other tensor."""
    known = _RECORDS.get(id(parameter))
    found = None if known is None or known[0]() is not parameter else known[1]()
    if found is None:
        found = next((r for r in records() if getattr(r, "_unsharded_param", None) is parameter), None)
        if found is not None:
            for key in [key for key, (held, _) in _RECORDS.items() if held() is None]:
                del _RECORDS[key]
            _RECORDS[id(parameter)] = weakref.ref(parameter), weakref.ref(found)
    return found


def records() -> Iterator[Any]:
    """One record for each parameter that `fully_shard` manages in this process."""
    seen: set[int] = set()
    for state in _states():
        groups = getattr(state, "_fsdp_param_groups", None)  # torch 2.11 has at most one, under the other name
        if groups is None:
            groups = [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            if id(group) not in seen:
                seen.add(id(group))
                yield from getattr(group, "fsdp_params", ())


def missing_part(record: Any) -> str | None:
    """The first of `FIELDS` that a record of the installed torch lacks; None where all are there."""
    return next((field for field in FIELDS if not hasattr(record, field)), None)


def masters() -> dict[int, Parameter]:
    """id of each Parameter that is gathered now, or has been -> its master. The ids hold as long as the modules."""
    return {id(p): r.sharded_param for r in records() if (p := getattr(r, "_unsharded_param", None)) is not None}


def record_holding(master: Tensor) -> Any | None:
    """FSDP2's record of a master; None for any other tensor."""
    return next((record for record in records() if record.sharded_param is master), None)


def gathered_of(master: Tensor) -> Parameter | None:
    """The Parameter that graphs get where modules hold `master`; None if it has never been gathered."""
    return cast("Parameter | None", getattr(record_holding(master), "_unsharded_param", None))


def shard_of(record: Any) -> tuple[int, int, int]:
    """(dim, start, length): which part of the gathered tensor the master holds."""
    dim: int = record.fsdp_placement.dim
    rank = getattr(record.mesh_info, "shard_mesh_rank", 0)  # none where it is replicated alone
    length = record.sharded_size[dim]
    return dim, min(rank * record.padded_sharded_param_size[dim], record._orig_size[dim] - length), length


def whole_of(record: Any) -> Tensor:
    """The tensor of which the processes of FSDP2 hold parts, gathered anew; under tensor parallel, this process's part
    of the weight."""
    whole: Tensor = record.sharded_param.detach().full_tensor()
    spec = record._unsharded_dtensor_spec
    if spec is None:
        return whole
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(whole.shape, spec.mesh, spec.placements)
    for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
        whole = whole.narrow(dim, start, length)
    return whole.contiguous()


def free_with(record: Any, buffers: tuple[Tensor, ...]) -> None:
    """Lets FSDP2 free the storages of these buffers whenever it frees the gathered weight.

    It is torch's own place for what an all-gather extension makes of a weight. They are not allocated again with it.
    """
    held: list[Tensor] = record._unsharded_inner_tensors
    known = {id(tensor) for tensor in held}
    held += [buffer for buffer in buffers if id(buffer) not in known]


def keep(reference: weakref.ref[Any], ids: frozenset[int]) -> None:
    """Ends what `free_with` began, for the buffers with these ids. Where the record lives, so do they."""
    record = reference()
    if record is not None:
        record._unsharded_inner_tensors[:] = [t for t in record._unsharded_inner_tensors if id(t) not in ids]


def _states() -> Iterator[Any]:
    """The FSDP states of this process, by torch's registry of all composable APIs."""
    registry = sys.modules.get("torch.distributed._composable_state")
    for reference in list(registry._module_state_mapping.values()) if registry is not None else ():
        state = reference() if isinstance(reference, weakref.ref) else reference
        if hasattr(state, "_fsdp_param_groups") or hasattr(state, "_fsdp_param_group"):
            yield state


def preserving_versions(buffers: tuple[Tensor, ...]) -> Any:
    """A context in which writes to these buffers leave their version counters as they are."""
    return torch.autograd._unsafe_preserve_version_counter(buffers)
