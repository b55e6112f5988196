"""A weak reference to the storage behind a tensor, which tells it from another one at the same address. A leaf.

Allocators hand out the address of what was freed: after `p.data = a; p.data = b` nothing but this may tell b from what
`p` was before. It keeps the storage's record, not its memory.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from s24compile.torch_internals.tensors import storage_id


class StorageReference(StorageWeakRef):
    """Refers to the storage of a tensor; `cdata` is unique among all storages while this lives."""

    __slots__ = ()

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.untyped_storage())  # type: ignore[no-untyped-call]

    def __copy__(self) -> StorageReference:
        return self  # torch's would give the reference back twice

    def __deepcopy__(self, memo: dict[int, Any]) -> StorageReference:
        return self

    def is_of(self, tensor: Tensor) -> bool:
        """Whether this is the tensor's storage."""
        return bool(self.cdata == storage_id(tensor))
