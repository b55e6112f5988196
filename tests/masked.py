"""The oracle of end-to-end tests: the same model with dense arithmetic on masked weights, in plain PyTorch.

Forward and input gradients see M.W, weight gradients are straight-through (all weights, unmasked): docs/math.md,
fully sparse training, with gradient="dense". It knows nothing of packing, graphs or kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def masked_call(model: nn.Module, masks: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """`model(*args)` with every parameter named in `masks` replaced by its masked, straight-through self."""
    params = dict(model.named_parameters())
    replaced = {name: params[name] + (params[name] * mask - params[name]).detach() for name, mask in masks.items()}
    return torch.func.functional_call(model, replaced, args, kwargs)


def live_masks(model: nn.Module) -> dict[str, Tensor]:
    """The masks that s24compile holds for a model's weights right now."""
    import s24compile

    return {name: weight.mask.clone() for name, weight in s24compile.sparse_weights(model).items()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name; clears them."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
