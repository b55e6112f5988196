"""Refuses calls of a registered op on meta tensors and others together.

Torch gives such a call to the fake kernel, whose result, made like an argument that is no meta tensor, is memory that
nobody writes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from s24compile.errors import TargetError
from s24compile.torch_internals.graphs import pytree
from s24compile.torch_internals.operators import custom_name, fake_kernel


def refuse_mixed_meta(op: CustomOpDef) -> None:
    """Lets the fake kernel of an op, registered before, look at the devices of its arguments first."""
    fake = fake_kernel(op)

    def checked(*args: Any, **kwargs: Any) -> Any:
        devices = {x.device for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if len(devices) > 1 and torch.device("meta") in devices:
            raise TargetError(
                what=f"s24::{custom_name(op)}",
                target=" and ".join(sorted(map(str, devices))),
                found="its tensors are on several devices, and those on meta hold no numbers",
                accepted="move all of them to one device (Module.to_empty, then load the weights)",
            )
        return None if fake is None else fake(*args, **kwargs)

    op.register_fake(checked)
