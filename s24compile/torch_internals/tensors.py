"""Tensors: subclasses and wrappers, storages and version counters."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from s24compile.torch_internals.part import Part, needed

with needed:
    from torch._C import DisableTorchFunctionSubclass
    from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

__all__ = [
    "PARTS",
    "DisableTorchFunctionSubclass",
    "get_unwrapped",
    "is_functorch_wrapped_tensor",
    "is_traceable_wrapper_subclass",
]

PARTS = (
    Part("torch._C.DisableTorchFunctionSubclass", "functions of a Sparse24 call themselves without end"),
    Part("torch._C._functorch.is_functorch_wrapped_tensor", "layers under torch.func transforms are rewritten"),
    Part("torch._C._functorch.get_unwrapped", "writes under torch.func transforms are not seen"),
    Part("torch.utils._python_dispatch.is_traceable_wrapper_subclass", "weights of other tensor classes are rewritten"),
    Part("torch.Tensor._make_wrapper_subclass", "there is no Sparse24"),
    Part("torch.Tensor._version", "writes in place between forwards are not seen"),
    Part("torch.UntypedStorage._cdata", "views of one memory are taken for several"),
    Part("torch.UntypedStorage._expired", "a weight whose memory was replaced at the same address is stale"),
)  # fmt: skip

make_wrapper_subclass: Callable[..., Any]
storage_expired: Callable[[int], bool]
"""(`storage_id` of a storage that is referred to) -> whether it is gone: 0.1 us, where `expired()` takes 0.3."""
with needed:
    make_wrapper_subclass = Tensor._make_wrapper_subclass
    storage_expired = cast("Callable[[int], bool]", torch.UntypedStorage._expired)

write_count: Callable[[Tensor], int] = operator.attrgetter("_version")
"""How often a tensor was written in place. RuntimeError of an inference tensor."""


def storage_id(tensor: Tensor) -> int:
    """Tells the memory of a tensor, real or fake, from that of others which are alive."""
    return int(tensor.untyped_storage()._cdata)
