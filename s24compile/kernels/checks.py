"""What the functional API refuses, one question per function, and how it reads seeds and formats."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from s24compile.errors import ArgumentError, DtypeError, OptionError, ShapeError, TargetError
from s24compile.kernels.packed import Packed24
from s24compile.kernels.target import Target
from s24compile.torch_internals.dynamo import constant_result

PACKABLE = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
)
"""dtypes of kept values; fp64 and fp32 run on the reference only."""


def check_tensor(what: str, x: object) -> None:
    """Refuses lists, arrays, None and whatever else is no tensor."""
    if not isinstance(x, Tensor):
        raise ArgumentError(what=what, found=type(x).__name__, accepted="it must be a torch.Tensor")


def check_packed(what: str, p: object) -> None:
    """Refuses dense tensors, and whatever else is not packed."""
    if not isinstance(p, Packed24):
        raise ArgumentError(
            what=what, found=type(p).__name__, accepted="it must be a Packed24, as ops.pack and ops.mvue_pack return it"
        )


def check_floating(what: str, x: Tensor) -> None:
    """Refuses integers, bools and complex numbers."""
    check_tensor(what, x)
    if not x.is_floating_point():
        raise DtypeError(what=what, dtype=x.dtype, accepted="it must be a floating-point tensor")


def check_matrix(what: str, x: Tensor) -> None:
    """Refuses all but floating-point matrices."""
    check_floating(what, x)
    if x.dim() != 2:
        raise ShapeError(what=what, shape=tuple(x.shape), accepted="it must have two dims; flatten or loop over others")


def check_hidden(what: str, x: Tensor) -> None:
    """Refuses all but matrices [T, F] of 16 bits and more, with F a multiple of 16: a cell of metadata."""
    check_matrix(what, x)
    if x.dtype.itemsize == 1:
        raise DtypeError(what=what, dtype=x.dtype, accepted="a hidden state needs 16 bits at least")
    if x.shape[1] % 16:
        raise ShapeError(
            what=what, shape=tuple(x.shape), accepted="the hidden width, its last dim, must be a multiple of 16"
        )


def check_multiple(what: str, x: Tensor, dims: tuple[int, ...]) -> None:
    """Refuses dims that do not exist or are no multiple of 4."""
    for dim in dims:
        if not isinstance(dim, int):
            raise ArgumentError(what="dim", found=type(dim).__name__, accepted="it must be an int")
        if not -x.dim() <= dim < x.dim():
            raise ShapeError(what=what, shape=tuple(x.shape), accepted=f"it has no dim {dim}")
        if x.shape[dim] % 4:
            raise ShapeError(
                what=what,
                shape=tuple(x.shape),
                accepted=f"dim {dim} must be a multiple of 4: two of each four neighbours are kept",
            )


def check_same_shape(what: str, x: Tensor, of: str, like: Tensor) -> None:
    """Refuses a tensor whose shape is not that of another argument."""
    check_tensor(what, x)
    check_tensor(of, like)
    if x.shape != like.shape:
        raise ShapeError(what=what, shape=tuple(x.shape), accepted=f"it must be {of}'s, {tuple(like.shape)}")


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """Refuses arguments of one call that are on different devices."""
    places = {name: x.device for name, x in tensors.items() if x is not None}
    if len(set(places.values())) > 1:
        raise TargetError(
            what=op,
            target=" and ".join(sorted({str(device) for device in places.values()})),
            found=", ".join(f"{name} is on {device}" for name, device in places.items()),
            accepted="move all of them to one device",
        )


def check_choice(name: str, value: object, accepted: tuple[str, ...]) -> None:
    """Refuses a word that is not in the list."""
    if value not in accepted:
        raise OptionError(name=name, value=value, accepted="it must be one of " + ", ".join(map(repr, accepted)))


def check_packable(dtype: torch.dtype | None) -> None:
    """Refuses dtypes that no kept value can have."""
    if dtype is not None and dtype not in PACKABLE:
        raise DtypeError(what="the packed tensor", dtype=dtype, accepted=f"kept values may be {PACKABLE}")


def seed_tensor(seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A seed as the ops take it: one int64 element on `device`. None draws it from torch's generator of the device.

    Raises:
        OptionError: neither an int, an integer tensor of one element, nor None.
    """
    if seed is None:
        return torch.randint(0, 2**62, (1,), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.numel() == 1 and not seed.is_floating_point() and not seed.is_complex():
            return seed.detach().reshape(1).to(device, torch.int64)
    elif isinstance(seed, (int, torch.SymInt)):
        if not torch.compiler.is_compiling():  # a traced int must fit in int64 by itself
            seed = (seed + 2**63) % 2**64 - 2**63  # the 64 bits of any int, as int64 holds them
        return torch.full((1,), seed, dtype=torch.int64, device=device)
    raise OptionError(name="seed", value=seed, accepted="it must be an int, an integer tensor of one element, or None")


@constant_result
def device_format(device: torch.device) -> str:
    """Name of the 2:4 format of a device: a constant to Dynamo, which does not trace into the look-up.

    Never cuSPARSELt's, which stands in for training only: its products are 16 bits wide and its bits its own.
    """
    return Target.detect(device).arch.format


def outside_inference_mode() -> contextlib.AbstractContextManager[object]:
    """Packs made under inference_mode must serve a later backward, which inference tensors cannot."""
    # Dynamo cannot ask for the mode; under it, is_compiling() is the constant True.
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        return torch.inference_mode(False)
    return contextlib.nullcontext()
