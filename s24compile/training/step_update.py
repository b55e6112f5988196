"""The arithmetic of STEP's two phases: AdamW's update, its denominator under a frozen variance, and how far v moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor

Criterion = Literal["mean", "geometric_mean"]
Denominator = Literal["sqrt(v)+eps", "sqrt(v+eps)", "sqrt(v)+eps**0.75"]


def variation_sums(
    parameters: Sequence[Tensor], group: dict[str, Any], states: Any, criterion: Criterion
) -> list[Tensor]:
    """Per parameter, the sum of |v_t - v_(t-1)| = (1 - beta2) |g^2 - v_(t-1)|, or of its logarithm."""
    sums = []
    for parameter in parameters:
        grad = cast(Tensor, parameter.grad).float()
        change = (grad.square() - states[parameter]["exp_avg_sq"]).abs_().mul_(1 - group["betas"][1])
        if criterion == "geometric_mean":
            change = change.clamp_min_(torch.finfo(change.dtype).tiny).log_()
        sums.append(change.sum())
    return _over_all_processes(sums)


def _over_all_processes(sums: list[Tensor]) -> list[Tensor]:
    """Sums of sharded parameters added up, and then over the processes that hold parts of them, in one round."""
    plain = [s for s in sums if not hasattr(s, "full_tensor")]
    dtensors: list[Any] = [s for s in sums if hasattr(s, "full_tensor")]
    sharded: dict[object, Any] = {}
    for s in dtensors:
        key = s.device_mesh, s.placements
        sharded[key] = sharded[key] + s if key in sharded else s
    return plain + [total.full_tensor() for total in sharded.values()]


def update(parameters: list[Tensor], group: dict[str, Any], states: Any, *, adapt: bool) -> None:
    """AdamW's update; with `adapt=False` the variance stays as it is, and so does its bias correction."""
    if not parameters:
        return
    lr, (beta1, beta2), eps = float(group["lr"]), group["betas"], group["eps"]
    grads = [cast(Tensor, p.grad) for p in parameters]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    for parameter in parameters:
        state = states[parameter]
        state["step"] += 1
        state["variance_steps"] += adapt
    moments = [states[p]["exp_avg"] for p in parameters]
    variances = [states[p]["exp_avg_sq"] for p in parameters]
    torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
    torch._foreach_lerp_(moments, grads, 1 - beta1)
    if adapt:
        torch._foreach_mul_(variances, beta2)
        torch._foreach_addcmul_(variances, grads, grads, 1 - beta2)
    corrected = list(torch._foreach_div(variances, [1 - beta2 ** states[p]["variance_steps"] for p in parameters]))
    into_denominators_(corrected, "sqrt(v)+eps" if adapt else group["denominator"], eps)
    rates = [-lr / (1 - beta1 ** states[p]["step"]) for p in parameters]
    torch._foreach_addcdiv_(parameters, moments, corrected, rates)


def into_denominators_(variances: list[Tensor], form: Denominator, eps: float) -> None:
    """Turns bias-corrected variances into what the update divides by, in place."""
    if form == "sqrt(v+eps)":
        torch._foreach_add_(variances, eps)
        torch._foreach_sqrt_(variances)
    else:
        torch._foreach_sqrt_(variances)
        torch._foreach_add_(variances, eps if form == "sqrt(v)+eps" else eps**0.75)
