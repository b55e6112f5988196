"""What AdamW_STEP accepts, and the steps that its `clip` means."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import cast, get_args

from torch import Tensor

from s24compile.errors import OptionError
from s24compile.training.step_update import Criterion, Denominator


def check_options(
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    total_steps: int,
    clip: tuple[float, float],
    threshold: float | None,
    criterion: Criterion,
    denominator: Denominator,
) -> None:
    """Raises OptionError for the first option of another type, or out of range."""
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
    for name, word, words in (
        ("criterion", criterion, get_args(Criterion)),
        ("denominator", denominator, get_args(Denominator)),
    ):
        if word not in words:
            raise OptionError(name=name, value=word, accepted="it must be one of " + ", ".join(map(repr, words)))


def switch_bounds(clip: tuple[float, float], total_steps: int) -> tuple[int, int]:
    """(T_min, T_max) in steps, both within the fractions `clip`, but for a T_max of at least 1."""
    # Rounded first: 0.07 * 100 is 7.000000000000001 in floats, and 0.29 * 100 is 28.999999999999996.
    first, last = (round(fraction * total_steps, 9) for fraction in clip)
    return math.ceil(first), max(1, math.floor(last))


def _not_negative(value: object, kind: type = Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(cast(float, value) >= 0)


def _two(values: object) -> bool:
    """Whether these are two numbers >= 0."""
    return isinstance(values, (tuple, list)) and len(values) == 2 and all(map(_not_negative, values))
