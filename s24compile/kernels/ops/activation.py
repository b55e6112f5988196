"""Contracts of plain activations, which lowering fuses with the GEMM before them or gives back to aten.

A graph holds them as ops of their own because AOTAutograd would decompose `aten.gelu` before lowering sees it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from s24compile.kernels import providers


@custom_op("s24::act", mutates_args=())
def act(z: Tensor, act: str) -> Tensor:
    """h = act(z), elementwise; "gelu", "gelu_tanh", "silu" or "relu"."""
    return providers.run("act", z, act)


@act.register_fake
def _(z: Tensor, act: str) -> Tensor:
    return torch.empty_like(z)


@custom_op("s24::act_backward", mutates_args=())
def act_backward(dh: Tensor, z: Tensor, act: str) -> Tensor:
    """dz = dh * act'(z), in z's layout and dtype."""
    return providers.run("act_backward", dh, z, act)


@act_backward.register_fake
def _(dh: Tensor, z: Tensor, act: str) -> Tensor:
    return torch.empty_like(z)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, ctx.act = inputs
    ctx.save_for_backward(z)


def _backward(ctx: Any, dh: Tensor) -> tuple[Tensor, None]:
    (z,) = ctx.saved_tensors
    return act_backward(dh, z, ctx.act), None


act.register_autograd(_backward, setup_context=_setup)
