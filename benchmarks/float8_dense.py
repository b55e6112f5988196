"""Float8 dense training, what a Hopper user has without 2:4: by torchao where it is installed, else by a linear of our
own that computes the same.

Tensorwise dynamic scales, all three GEMMs in eight bits on cuBLASLt: inputs and weights in e4m3, gradients in e5m2,
outputs in the input's dtype. torchao's recipe "tensorwise" (0.18.0) spelled out:

    y  = x8 w8^T            fast accumulation        x8: x quantised by 448 / amax, w8 likewise
    dx = g8 w8              exact accumulation       g8: dy quantised by 57344 / amax
    dw = g8^T x8            exact accumulation

cuBLASLt contracts operands along their contiguous dims only, so each backward GEMM transposes one or two of them;
casts, scales and transposes are plain torch operations, which Inductor fuses.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LEAST_AMAX = 1e-12
"""What torchao takes for the amax of smaller tensors."""
UNIT = 16
"""Features that cuBLASLt takes are multiples of it."""


def convert(model: nn.Module, accept: Callable[[str], bool] = lambda name: True, *, own: bool = False) -> str:
    """Lets the linears of `model` whose names are accepted compute in float8, in place.

    Args:
        own: by `Float8Linear` also where torchao is installed.

    Returns:
        Who does it: "torchao VERSION" or "torch._scaled_mm".
    """
    if importlib.util.find_spec("torchao") is not None and not own:
        import torchao
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        config = Float8LinearConfig.from_recipe_name("tensorwise")
        convert_to_float8_training(model, config=config, module_filter_fn=lambda m, name: _fits(m) and accept(name))
        return f"torchao {torchao.__version__}"
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            whole = f"{name}.{child_name}" if name else child_name
            if isinstance(child, nn.Linear) and _fits(child) and accept(whole):
                setattr(module, child_name, Float8Linear(child))
    return "torch._scaled_mm"


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.in_features % UNIT == 0 and module.out_features % UNIT == 0


class Float8Linear(nn.Module):
    """A linear on the parameters of another one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], in autocast's dtype where that is on."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # the weight is quantised as it is
        y: Tensor = _Float8Product.apply(x.reshape(-1, x.shape[-1]), self.weight)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias.to(y.dtype)


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x in eight bits, what it is multiplied by to be itself again, fp32)."""
    limit = torch.finfo(dtype).max
    amax = x.abs().amax().to(torch.float64).clamp(min=LEAST_AMAX)
    scale = (limit / amax).to(torch.float32)
    return (x.to(torch.float32) * scale).clamp(-limit, limit).to(dtype), scale.reciprocal()


class _Float8Product(torch.autograd.Function):
    """x [T, K] w [N, K]^T; saves what torchao does: x and w as they were given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        (x8, scale_x), (w8, scale_w) = quantise(x, torch.float8_e4m3fn), quantise(w, torch.float8_e4m3fn)
        return _product(x8, scale_x, w8.t(), scale_w, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (x, w), (dy,) = ctx.saved_tensors, gradients
        (g8, scale_g), (w8, scale_w) = quantise(dy, torch.float8_e5m2), quantise(w, torch.float8_e4m3fn)
        x8, scale_x = quantise(x, torch.float8_e4m3fn)
        dx = _product(g8, scale_g, _by_columns(w8), scale_w, x.dtype, fast=False)
        dw = _product(g8.t().contiguous(), scale_g, _by_columns(x8), scale_x, dy.dtype, fast=False)
        return dx, dw.to(w.dtype)


def _by_columns(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def _product(a: Tensor, scale_a: Tensor, b: Tensor, scale_b: Tensor, dtype: torch.dtype, *, fast: bool) -> Tensor:
    return torch._scaled_mm(a.contiguous(), b, scale_a=scale_a, scale_b=scale_b, out_dtype=dtype, use_fast_accum=fast)
