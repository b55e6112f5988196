"""Contracts of activations, plain and gated. Legend: z [..., 2F] and h [..., F] of a GLU, of one shape otherwise.

A graph holds plain ones as ops of their own because AOTAutograd would decompose `aten.gelu` before lowering sees it,
which fuses them with the GEMM before them or gives them back to aten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from s24compile.kernels.ops.contract import contract


@contract()
def act(z: Tensor, act: str) -> Tensor:
    """h = act(z), elementwise."""
    return torch.empty_like(z)


@contract()
def act_backward(dh: Tensor, z: Tensor, act: str) -> Tensor:
    """dz = dh * act'(z), in z's layout and dtype."""
    return torch.empty_like(z)


def _act_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.act = inputs
    ctx.save_for_backward(z)


def _act_backward(ctx: Any, dh: Tensor) -> tuple[Tensor, None]:
    (z,) = ctx.saved_tensors
    return act_backward(dh, z, ctx.act), None


act.register_autograd(_act_backward, setup_context=_act_setup)


@contract()
def glu(z: Tensor, act: str, gate: str) -> Tensor:
    """h = act(gate half) * other half, contiguous [..., F]."""
    return z.new_empty((*z.shape[:-1], z.shape[-1] // 2))


@contract()
def glu_backward(dh: Tensor, z: Tensor, act: str, gate: str) -> Tensor:
    """dz, contiguous [..., 2F] of z's dtype, from dh and the saved z."""
    return z.new_empty(z.shape)


def _glu_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.act, ctx.gate = inputs
    ctx.save_for_backward(z)


def _glu_backward(ctx: Any, dh: Tensor) -> tuple[Tensor, None, None]:
    (z,) = ctx.saved_tensors
    return glu_backward(dh, z, ctx.act, ctx.gate), None, None


glu.register_autograd(_glu_backward, setup_context=_glu_setup)
