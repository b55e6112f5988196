"""Masked decay: pruned weights are pulled towards zero, so that they stop coming back and the mask settles.

"gradient" [FST Eq. 10]: g <- g + lambda * (not M) * W, which Adam then normalises like any gradient.
"weight" [FST Eq. 8; SR-STE]: w <- w - lr * lambda * (not M) * w, before the step, as AdamW does its weight decay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from s24compile.errors import ModelError, OptionError
from s24compile.recipe import PatternKind
from s24compile.torch_internals.tensors import is_traceable_wrapper_subclass
from s24compile.weights.sharding import local
from s24compile.weights.sparse_weight import SparseWeight


def decay_(optimizer: Optimizer, held: Iterable[tuple[dict[str, Any], SparseWeight]]) -> None:
    """Applies masked decay to the gradients (or weights) that an optimizer is about to use. Never syncs with the host.

    Left alone: weights in their dense phase, never searched, without gradient, or without a sparse forward since their
    last step (they train dense now: pruned by `torch.nn.utils.prune`, run uncompiled); recipes without decay.

    Raises:
        ModelError: a gradient that is no dense tensor of the weight's shape and sharding.
        OptionError: decay on the weights with an optimizer that has no learning rate.
    """
    factors: dict[tuple[float, torch.device, torch.dtype], Tensor] = {}
    batches: dict[tuple[int, PatternKind], _Batch] = {}
    with torch.no_grad():
        for group, weight in held:
            on = weight.recipe.decay_on
            parameter = weight.parameter()
            if on is None or weight.decay == 0 or parameter is None or parameter.grad is None:
                continue
            if not weight.has_mask or weight.phase == "dense" or weight.packed_at < weight.tick:
                continue
            _check_gradient(weight, parameter)
            stored, target = local(parameter.detach()), local(parameter.grad if on == "gradient" else parameter)
            if target.numel() == 0:
                continue  # another process steps all of it
            # Optimizers that maximise step along +g, and towards zero is against w all the same.
            sign = -1.0 if on == "weight" or group.get("maximize") else 1.0
            rate = _learning_rate(optimizer, group) if on == "weight" else 1.0
            dtype = torch.float64 if target.dtype == torch.float64 else torch.float32
            if isinstance(rate, Tensor):
                factor = _factor(optimizer, sign * weight.decay, target.device, dtype, scaled=False) * rate
            else:
                key = (sign * weight.decay * rate, target.device, dtype)
                if key not in factors:
                    factors[key] = _factor(optimizer, *key, scaled=on == "gradient")
                factor = factors[key]
            kind = weight.recipe.pattern_kind
            batch = batches.setdefault((id(factor), kind), _Batch(factor))
            batch.add(weight, target, stored)
        # One call a factor, and only when every gradient has been found fit: nothing is half-changed.
        for (_, kind), batch in batches.items():
            batch.decay_(kind)


@dataclasses.dataclass
class _Batch:
    """Weights that are decayed by the same factor, each in logical orientation [N, K]."""

    factor: Tensor
    targets: list[Tensor] = dataclasses.field(default_factory=list)
    parameters: list[Tensor] = dataclasses.field(default_factory=list)
    patterns: list[Tensor] = dataclasses.field(default_factory=list)
    edges: list[tuple[Tensor, Tensor, Tensor]] = dataclasses.field(default_factory=list)
    """(target, parameter, mask) of rows or columns of blocks that the bounds of a shard cut."""

    def add(self, weight: SparseWeight, target: Tensor, parameter: Tensor) -> None:
        """`target` is the gradient, or the parameter itself: of both, what this process stores."""
        assert weight.patterns is not None
        target, parameter = weight.logical(target), weight.logical(parameter)
        patterns = weight.patterns.to(target.device)  # FSDP2 may keep shards on the host, and waits for them anyway
        whole, edges = weight.shard_patterns(patterns)
        if whole is not None:
            dim, start, length, part = whole
            self.targets.append(target.narrow(dim, start, length))
            self.parameters.append(parameter.narrow(dim, start, length))
            self.patterns.append(part)
        for dim, start, length, mask in edges:
            self.edges.append((target.narrow(dim, start, length), parameter.narrow(dim, start, length), mask))

    def decay_(self, kind: PatternKind) -> None:
        """Changes all targets."""
        if self.targets:
            torch.ops.s24.masked_decay_many_.default(self.targets, self.parameters, self.patterns, kind, self.factor)
        for target, parameter, mask in self.edges:
            target.add_(parameter.to(self.factor.dtype).masked_fill(mask, 0.0).mul_(self.factor))


def _factor(optimizer: Optimizer, decay: float, device: torch.device, dtype: torch.dtype, *, scaled: bool) -> Tensor:
    """lambda as a 0-d tensor: in units of a gradient that is still scaled, and 0 where the step will be skipped.

    GradScaler leaves `grad_scale` and `found_inf` on a fused optimizer (None or missing where they don't apply).
    """
    factor = torch.full((), decay, device=device, dtype=dtype)
    grad_scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if scaled and grad_scale is not None:
        factor = factor * grad_scale.to(device, dtype)
    if found_inf is not None:
        factor = factor * (found_inf.to(device) == 0)
    return factor


def _learning_rate(optimizer: Optimizer, group: dict[str, Any]) -> float | Tensor:
    rate = group.get("lr", optimizer.defaults.get("lr"))
    if rate is None:
        raise OptionError(
            name="recipe",
            value="srste",
            accepted=f"its decay is scaled by the learning rate, and {type(optimizer).__name__} has no 'lr'; use an "
            "optimizer that has one, or recipe='ste'",
        )
    return rate


def _check_gradient(weight: SparseWeight, parameter: Tensor) -> None:
    grad = parameter.grad
    assert grad is not None
    # A sharded one is of the same rows as its parameter, and has been summed.
    sharded = getattr(grad, "placements", None) == getattr(parameter, "placements", None)
    plain = sharded and not is_traceable_wrapper_subclass(local(grad)) and grad.layout == torch.strided
    if not plain or local(grad).shape != local(parameter).shape:
        where = f" placed {grad.placements}" if hasattr(grad, "placements") else ""
        raise ModelError(
            what=f"masked decay of weight {weight.name!r}",
            found=f"its gradient is a {type(grad).__name__} of layout {grad.layout} and shape {tuple(grad.shape)}"
            + where,
            accepted=f"it must be a dense tensor of shape {tuple(parameter.shape)}, sharded as the weight is; set "
            "decay=0 to train without decay",
        )
