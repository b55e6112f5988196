"""Contracts of GLU and masked decay. Legend: z [..., 2F], h [..., F]."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.library import custom_op

from s24compile.kernels import providers


@custom_op("s24::glu", mutates_args=())
def glu(z: Tensor, act: str, gate: str) -> Tensor:
    """h = act(gate half) * other half, contiguous [..., F]."""
    return providers.run("glu", z, act, gate)


@glu.register_fake
def _(z: Tensor, act: str, gate: str) -> Tensor:
    return z.new_empty((*z.shape[:-1], z.shape[-1] // 2))


@custom_op("s24::glu_backward", mutates_args=())
def glu_backward(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """dz, contiguous [..., 2F] of z's dtype, from dh and the saved z."""
    return providers.run("glu_backward", dh, z, act, gate)


@glu_backward.register_fake
def _(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    return z.new_empty(z.shape)


def _glu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.act, ctx.gate = inputs
    ctx.save_for_backward(z)


def _glu_backward(ctx: Any, dh: Tensor) -> tuple[Tensor, None, None]:
    (z,) = ctx.saved_tensors
    return glu_backward(dh, z, ctx.act, ctx.gate), None, None


glu.register_autograd(_glu_backward, setup_context=_glu_setup)


@custom_op("s24::masked_decay_", mutates_args=("grad",))
def masked_decay_(grad: Tensor, w: Tensor, mask: Tensor, alpha: float) -> None:
    """grad += alpha * w where the bool mask is False."""
    providers.run("masked_decay_", grad, w, mask, alpha)


@custom_op("s24::masked_decay_patterns_", mutates_args=("grad",))
def masked_decay_patterns_(grad: Tensor, w: Tensor, patterns: Tensor, kind: str, alpha: Tensor) -> None:
    """The same with the mask as pattern numbers and alpha a 0-d tensor, so that no value crosses to the host."""
    providers.run("masked_decay_patterns_", grad, w, patterns, kind, alpha)
