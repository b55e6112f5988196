"""STEP [Lu et al., ICML 2023]: learn 2:4 masks with an AdamW whose variance comes from a dense first phase.

Phase 1 is AdamW on the dense model. Phase 2 trains 2:4 (hard top-2, straight-through) with the variance frozen at
v*, because gradients of masked weights make v too small for the weights they silence. `AutoSwitch` ends phase 1
when v has stopped moving. The optimizer tells the weights of recipe "step" which phase it is; nothing else has to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from s24compile.errors import CheckpointError, OptionError
from s24compile.sparse_weight import DRIVEN
from s24compile.training.schedule import Phase

Criterion = Literal["mean", "geometric_mean"]
Denominator = Literal["sqrt(v)+eps", "sqrt(v+eps)", "sqrt(v)+eps**0.75"]
_SWITCH_FIELDS = ("steps", "switched_at", "variations")


class AdamW_STEP(Optimizer):
    """AdamW for `Config(recipe="step")`; a complete run is in its `state_dict`, the phase included.

    The switch comes after the first step t in [T_min, T_max] at which the variation Z has had a mean below the
    threshold over a full window of round(1 / (1 - beta2)) steps, and at T_max at the latest. Z_t, over all elements of
    all parameters, is mean |v_t - v_(t-1)| (criterion "mean", option 1) or exp(mean log |v_t - v_(t-1)|)
    ("geometric_mean", option 2; differences of 0 count as the smallest normal float). From T_min on, phase 1 reads Z
    once a step, which stops the host until the device has caught up; phase 2 does not.

    Parameters that get their first gradient after the switch have no v*, and keep adapting theirs.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        total_steps: int,
        clip: tuple[float, float] = (0.1, 0.5),
        criterion: Criterion = "mean",
        threshold: float | None = None,
        denominator: Denominator = "sqrt(v+eps)",
        maximize: bool = False,
    ) -> None:
        """Makes the optimizer, in phase 1.

        Args:
            params, lr, betas, eps, weight_decay, maximize: as in `torch.optim.AdamW`.
            total_steps: length of the run, of which `clip` are fractions.
            clip: (T_min, T_max) of the switch, as fractions of `total_steps`.
            criterion: how the variation Z_t is averaged over elements.
            threshold: what the variation must fall below; `eps` by default, as in the paper.
            denominator: of phase 2's update, with v* for v. The default is the paper's: it damps elements whose v* is
                under eps, such as the embedding of a token that was rare until the switch. Under a v* that does not
                follow, its next gradient would move it by thousands of learning rates. "sqrt(v)+eps" is AdamW's own,
                with which the other elements' updates do not jump at the switch; eps**0.75 lies between them.

        Raises:
            OptionError: a value of another type, or out of range.
        """
        _check(lr, betas, eps, weight_decay, total_steps, clip, threshold)
        for name, value, accepted in (
            ("criterion", criterion, get_args(Criterion)),
            ("denominator", denominator, get_args(Denominator)),
        ):
            if value not in accepted:
                raise OptionError(
                    name=name, value=value, accepted="it must be one of " + ", ".join(map(repr, accepted))
                )
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "t_min": math.ceil(clip[0] * total_steps), "t_max": max(1, math.floor(clip[1] * total_steps)),
            "criterion": criterion, "threshold": eps if threshold is None else threshold, "denominator": denominator,
            # In every group, because groups are what a state_dict saves; the first one's are read.
            "steps": 0, "switched_at": None, "variations": (),
        }  # fmt: skip
        super().__init__(params, defaults)

    @property
    def phase(self) -> Phase:
        """ "dense" (phase 1) or "sparse" (phase 2)."""
        return "dense" if self.switched_at is None else "sparse"

    @property
    def switched_at(self) -> int | None:
        """The step after which phase 2 began; None in phase 1."""
        return cast("int | None", self.param_groups[0]["switched_at"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.add_param_group`."""
        super().add_param_group(param_group)
        first, added = self.param_groups[0], self.param_groups[-1]
        added.update({field: first[field] for field in _SWITCH_FIELDS})
        self._drive(added["params"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`; the weights follow the phase of the checkpoint.

        Raises:
            CheckpointError: it was saved by another optimizer. Nothing has been changed.
        """
        for group in state_dict["param_groups"]:
            missing = [field for field in self.defaults if field not in group]
            if missing:
                raise CheckpointError(
                    found=f"the optimizer's groups have no {missing[0]!r}",
                    accepted="load what AdamW_STEP.state_dict() returned; a run cannot change over to STEP",
                )
        super().load_state_dict(state_dict)
        self._drive_all()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._drive_all()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update. In phase 1, decides afterwards whether the next forward is sparse.

        Returns: what the closure returned, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]
        steps, dense = first["steps"] + 1, self.phase == "dense"
        sums: list[Tensor] = []
        count = 0
        for group in self.param_groups:
            adapting, frozen = self._split(group, dense)
            if dense and first["t_max"] > first["t_min"]:
                sums += _variation_sums(adapting, group, self.state, first["criterion"])
                count += sum(p.numel() for p in adapting)
            _update(adapting, group, self.state, adapt=True)
            _update(frozen, group, self.state, adapt=False)
        self._note(steps=steps)
        if dense:
            self._switch_if_settled(steps, sums, count)
        return loss

    def _split(self, group: dict[str, Any], dense: bool) -> tuple[list[Tensor], list[Tensor]]:
        adapting: list[Tensor] = []
        frozen: list[Tensor] = []
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["step"] = state["variance_steps"] = 0
                state["late"] = not dense
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            (adapting if dense or state["late"] else frozen).append(parameter)
        return adapting, frozen

    def _switch_if_settled(self, steps: int, sums: Sequence[Tensor], count: int) -> None:
        first = self.param_groups[0]
        window = max(1, round(1 / (1 - first["betas"][1])))
        if sums:
            total = torch.stack([s.to(sums[0].device) for s in sums]).sum() / max(count, 1)
            variation = total.exp() if first["criterion"] == "geometric_mean" else total
            # Kept on the device until T_min: nothing is decided before.
            kept = (*first["variations"], variation)[-window:]
            if steps >= first["t_min"]:
                kept = _on_host(kept)
            self._note(variations=kept)
        variations = first["variations"]
        settled = (
            steps >= first["t_min"] and len(variations) == window and sum(variations) / window < first["threshold"]
        )
        if settled or steps >= first["t_max"]:
            self._note(switched_at=steps, variations=())
            self._drive_all()

    def state_dict(self) -> dict[str, Any]:
        """See `torch.optim.Optimizer.state_dict`."""
        self._note(variations=_on_host(self.param_groups[0]["variations"]))
        return super().state_dict()

    def _note(self, **fields: Any) -> None:
        for group in self.param_groups:
            group.update(fields)

    def _drive_all(self) -> None:
        for group in self.param_groups:
            self._drive(group["params"])

    def _drive(self, parameters: Iterable[Tensor]) -> None:
        for parameter in parameters:
            DRIVEN.set(parameter, self.phase)


def _on_host(variations: Sequence[float | Tensor]) -> tuple[float, ...]:
    """The variations as floats, with at most one host sync."""
    waiting = [v for v in variations if isinstance(v, Tensor)]
    read = iter(torch.stack(waiting).tolist() if waiting else ())
    return tuple(next(read) if isinstance(v, Tensor) else v for v in variations)


def _variation_sums(
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
    return sums


def _update(parameters: list[Tensor], group: dict[str, Any], states: Any, *, adapt: bool) -> None:
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
    corrected = torch._foreach_div(variances, [1 - beta2 ** states[p]["variance_steps"] for p in parameters])
    form: Denominator = "sqrt(v)+eps" if adapt else group["denominator"]
    if form == "sqrt(v+eps)":
        torch._foreach_add_(corrected, eps)
        torch._foreach_sqrt_(corrected)
    else:
        torch._foreach_sqrt_(corrected)
        torch._foreach_add_(corrected, eps if form == "sqrt(v)+eps" else eps**0.75)
    rates = [-lr / (1 - beta1 ** states[p]["step"]) for p in parameters]
    torch._foreach_addcdiv_(parameters, moments, corrected, rates)


def _check(
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    total_steps: int,
    clip: tuple[float, float],
    threshold: float | None,
) -> None:
    rate = lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr
    checks = (
        ("lr", lr, _not_negative(rate), "it must be a number >= 0, or a tensor of one"),
        ("betas", betas, _two(betas) and max(betas) < 1, "it must be two numbers in [0, 1)"),
        ("eps", eps, _not_negative(eps), "it must be a number >= 0"),
        ("weight_decay", weight_decay, _not_negative(weight_decay), "it must be a number >= 0"),
        (
            "total_steps",
            total_steps,
            _not_negative(total_steps, Integral) and total_steps,
            "it must be an integer >= 1",
        ),
        ("clip", clip, _two(clip) and clip[0] <= clip[1] <= 1, "it must be (T_min, T_max), 0 <= T_min <= T_max <= 1"),
        ("threshold", threshold, threshold is None or _not_negative(threshold), "it must be a number >= 0, or None"),
    )
    for name, value, fine, accepted in checks:
        if not fine:
            raise OptionError(name=name, value=value, accepted=accepted)


def _not_negative(value: object, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(cast(float, value) >= 0)


def _two(values: object) -> bool:
    """Whether these are two numbers >= 0."""
    return isinstance(values, (tuple, list)) and len(values) == 2 and all(map(_not_negative, values))
