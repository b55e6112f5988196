"""Sees to it that all ranks which train one model have loaded the same sparse state, or none of them any.

Masks are searched on each rank, of equal numbers at equal steps: nothing is sent. A state that rank 0 has loaded alone,
as one may a model's before DistributedDataParallel broadcasts it, would give it other masks than the rest, in silence.
So the first forward that trains after a loading asks the others for theirs, through the store of the process group,
which takes a few milliseconds once and no collective that the others might not join.
"""

from __future__ import annotations

import datetime
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from s24compile.errors import ModelError
from s24compile.torch_internals import processes
from s24compile.weights.registry import Load
from s24compile.weights.sharding import data_parallel_mesh
from s24compile.weights.sparse_weight import SparseWeight

log = logging.getLogger("s24compile")

PATIENCE_S = 120
"""How long the others are waited for: they may still be reading a checkpoint."""


def fingerprint(state: Mapping[str, Any]) -> str:
    """A number that differs where states do."""
    number = 0
    for name in sorted(state):
        for field, value in sorted(state[name].items()):
            held = value.detach().cpu().contiguous() if isinstance(value, torch.Tensor) else None
            content = repr(value).encode() if held is None else held.view(torch.uint8).numpy().tobytes()
            number = zlib.crc32(f"{name}.{field}".encode() + content, number)
    return str(number)


def agree(weights: Iterable[SparseWeight]) -> None:
    """Before a forward that trains these weights: asks about loadings that nobody has asked about.

    Raises:
        ModelError: another rank has loaded another state, or none.
    """
    for weight in weights:
        load = weight.load
        if load is None or load.agreed:
            continue
        for group in _groups(weight):
            _ask(load, group)
        load.agreed = True


def _groups(weight: SparseWeight) -> Iterator[Any]:
    parameter = weight.parameter()
    if parameter is None or not (dist.is_available() and dist.is_initialized()):
        return
    mesh = data_parallel_mesh(parameter)
    if mesh is not None:
        yield from (mesh.get_group(dim) for dim in range(mesh.ndim))
    else:
        yield from processes.data_parallel_groups(parameter)


def _ask(load: Load, group: Any) -> None:
    store, rank = processes.store(), dist.get_rank()
    key = f"s24compile/loads/{group.group_name}"
    number = store.add(f"{key}/{rank}/number", 1)
    store.set(f"{key}/{number}/{rank}", load.fingerprint)
    for other in dist.get_process_group_ranks(group):
        place = f"{key}/{number}/{other}"
        try:
            store.wait([place], datetime.timedelta(seconds=PATIENCE_S))
            found = store.get(place).decode()
        except RuntimeError:
            found = ""
        if found != load.fingerprint:
            raise ModelError(
                what="s24compile.load_state_dict",
                found=f"rank {rank} has loaded a sparse state, and rank {other} of its group "
                + ("another one" if found else f"none (in {PATIENCE_S} s)")
                + ": their masks would differ",
                accepted="load the same state on every rank: what DistributedDataParallel broadcasts from rank 0 are "
                "parameters and buffers, not masks",
            )
