"""Wrappers around a user's model: how to see the model inside, and what its parameters are called. A leaf.

torch.compile, DistributedDataParallel and DataParallel put a module around another, and a prefix before its names. All
of s24compile names weights as the innermost model does.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn import Parameter

from s24compile.errors import ModelError
from s24compile.torch_internals.compiled import COMPILED


def unwrapped(model: nn.Module) -> nn.Module:
    """The innermost model: what torch.compile, DistributedDataParallel and DataParallel were given, in any order.

    Raises:
        ModelError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(what="the model", found=f"a {type(model).__name__} was given", accepted="pass an nn.Module")
    inner: nn.Module | None = model
    while inner is not None:
        model = inner
        data_parallel = isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))
        inner = model._modules.get("module" if data_parallel else COMPILED)
    return model


def clean_name(name: str) -> str:
    """A module's or parameter's name as if nothing inside the model were compiled."""
    return ".".join(part for part in name.split(".") if part != COMPILED)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """(name, Parameter) of the innermost model, as if nothing in it were compiled; shared ones once.

    Raises:
        ModelError: `model` is no module.
    """
    for name, parameter in unwrapped(model).named_parameters():
        yield clean_name(name), parameter
