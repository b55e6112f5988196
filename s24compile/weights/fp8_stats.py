"""What the scales of layers in eight bits were made from, and what they left out."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from s24compile.errors import ModelError
from s24compile.kernels.scaling import LIMITS, finite_amax, scale_of
from s24compile.weights.operand import Operand
from s24compile.weights.operand_map import operands_of
from s24compile.wrappers import named_parameters, unwrapped

FORWARD, GRADIENT = torch.float8_e4m3fn, torch.float8_e5m2


@dataclasses.dataclass(frozen=True)
class Fp8Stats:
    """One tensor of a layer in eight bits: a weight as it is packed, an input or an output's gradient in the last step.

    Of inputs and gradients, all is None before the first backward.
    """

    dtype: torch.dtype
    """What it is rounded to: e4m3, gradients e5m2."""
    amax: float | None
    """Its largest finite magnitude."""
    scale: float | None
    """What it was multiplied by: the largest number of the dtype over amax; 1 where all of it is 0."""
    saturated: float | None
    """Share of its finite numbers that were larger than what the scale leaves room for. 0 as long as each scale is that
    of the tensor's own amax, as all are."""


def fp8_stats(model: nn.Module) -> dict[str, Fp8Stats]:
    """Name of a tensor -> its statistics, for all layers of precision="fp8" that have been 2:4 in a forward so far.

    Under the name of the weight's parameter the weight; under "<module>.input" and "<module>.output_gradient" the two
    tensors that are multiplied by it (under "<parameter>.input" where it is not called "weight"). Gate and up that are
    one GEMM share all three. Of what is accumulated over several backwards, the last one's. Costs one host sync;
    noting the numbers costs none, in no step.

    Raises:
        ModelError: `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            what="fp8_stats", found=f"a {type(model).__name__} was given", accepted="give it the torch.nn.Module"
        )
    names = {id(parameter): name for name, parameter in named_parameters(unwrapped(model))}
    places: list[tuple[str, torch.dtype]] = []
    found: list[Tensor | None] = []
    for _, parameter in named_parameters(unwrapped(model)):
        for operand in [operand for operand in operands_of(parameter) if operand.request.eight_bit and operand.forward]:
            for name in [names[id(p)] for p in operand.parameters() if id(p) in names]:
                places += [(name, FORWARD), (_beside(name, "input"), FORWARD)]
                places.append((_beside(name, "output_gradient"), GRADIENT))
                found += _numbers(operand)
    values = _read(found)
    return {name: _stats(dtype, amax) for (name, dtype), amax in zip(places, values, strict=True)}


def _numbers(operand: Operand) -> list[Tensor | None]:
    """amax of the weight, of the input and of the output's gradient: fp32 [1] each, where they are."""
    # What the weight is multiplied by is the largest number over its amax, and its descale the inverse of that.
    seen = operand.observed.found if operand.observed is not None else [None, None]
    descale = operand.forward[2]
    # 1 is that of zeros, too; a weight that is not zero has an amax of exactly 448 then.
    own = torch.stack([finite_amax(parameter) for parameter in operand.parameters()]).amax(0)
    return [torch.where(descale == 1.0, own, descale * LIMITS[FORWARD]), *seen]


def _read(found: list[Tensor | None]) -> list[float | None]:
    """The numbers, with one host sync for those of one device."""
    known = [tensor for tensor in found if tensor is not None]
    values = iter(torch.cat([tensor.to(known[0].device) for tensor in known]).tolist() if known else ())
    return [None if tensor is None else next(values) for tensor in found]


def _stats(dtype: torch.dtype, amax: float | None) -> Fp8Stats:
    if amax is None:
        return Fp8Stats(dtype, None, None, None)
    return Fp8Stats(dtype, amax, float(scale_of(torch.tensor([amax]), dtype)), 0.0)


def _beside(name: str, what: str) -> str:
    owner, _, own = name.rpartition(".")
    return ".".join(filter(None, (owner, what))) if own == "weight" else f"{name}.{what}"
