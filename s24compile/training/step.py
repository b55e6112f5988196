"""STEP [Lu et al., ICML 2023]: learn 2:4 masks with an AdamW whose variance comes from a dense first phase.

Phase 1 is AdamW on the dense model. Phase 2 trains 2:4 (hard top-2, straight-through) with the variance frozen at
v*, because gradients of masked weights make v too small for the weights they silence. Phase 1 ends when v has stopped
moving: the paper calls that rule AutoSwitch, here it is `AdamW_STEP._switch_if_settled`. The optimizer tells the
weights of recipe "step" which phase it is; nothing else has to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from s24compile.errors import CheckpointError
from s24compile.training.step_options import check_options, switch_bounds
from s24compile.training.step_update import Criterion, Denominator, update, variation_sums
from s24compile.weights.schedule import DRIVEN, Phase

_SWITCH_FIELDS = ("steps", "switched_at", "variations")
_FIELDS = (
    "lr", "betas", "eps", "weight_decay", "maximize", "t_min", "t_max", "criterion", "threshold", "denominator",
    *_SWITCH_FIELDS,
)  # fmt: skip
"""What each group of a checkpoint has to have. Not `self.defaults`: torch's `__setstate__` adds fields to those."""


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
        check_options(lr, betas, eps, weight_decay, total_steps, clip, threshold, criterion, denominator)
        t_min, t_max = switch_bounds(clip, total_steps)
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize,
            "t_min": t_min, "t_max": t_max,
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
        accepted = "load what AdamW_STEP.state_dict() returned; a run cannot change over to STEP"
        absent = [key for key in ("state", "param_groups") if key not in state_dict]
        if absent:
            raise CheckpointError(found=f"the optimizer's state has no {absent[0]!r}", accepted=accepted)
        for group in state_dict["param_groups"]:
            missing = [field for field in _FIELDS if field not in group]
            if missing:
                raise CheckpointError(found=f"the optimizer's groups have no {missing[0]!r}", accepted=accepted)
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
                sums += variation_sums(adapting, group, self.state, first["criterion"])
                count += sum(p.numel() for p in adapting)
            update(adapting, group, self.state, adapt=True)
            update(frozen, group, self.state, adapt=False)
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
