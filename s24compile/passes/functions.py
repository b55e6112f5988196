"""Which activation a pointwise expression computes, whatever its spelling: it is run on sample numbers and compared.

    z * 0.5 * (1 + tanh(0.79788456 * (z + 0.044715 * z ** 3)))     and     0.5 * z + 0.5 * z * tanh(...)

are the same numbers at every z, so both are "gelu_tanh"; no list of spellings would hold every order of products and
sums. Autograd differentiates the expression on the same samples, so a custom slope is never taken for eager's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from s24compile.kernels.activations import ACTIVATIONS

_UPS = (-2.25, -0.75, 0.0, 1.0, 1e3)
"""Sample values of the factor beside a gate's activation."""
_OVERFLOW = 100.0
"""From here on exp(-x) may overflow, and a slope that it has part in be NaN in eager."""


@dataclasses.dataclass(frozen=True)
class Place:
    """An operand of a step: the value at this index, where the inputs come first and each step adds one."""

    index: int


@dataclasses.dataclass(frozen=True)
class Step:
    """One call. Numbers stand as they are, values by their `Place`."""

    call: Callable[..., Any]
    args: tuple[object, ...]
    keywords: tuple[tuple[str, object], ...] = ()


@dataclasses.dataclass(frozen=True)
class Expression:
    """A pointwise expression without its graph: what is equal for all layers that are written alike."""

    inputs: int
    """One, or two for a gate and what it is multiplied by."""
    steps: tuple[Step, ...]

    def run(self, *inputs: Tensor) -> Tensor:
        """The value of the last step."""
        values: list[Any] = list(inputs)
        for step in self.steps:
            args = [values[arg.index] if isinstance(arg, Place) else arg for arg in step.args]
            keywords = {k: values[v.index] if isinstance(v, Place) else v for k, v in step.keywords}
            values.append(step.call(*args, **keywords))
        found: Tensor = values[-1]
        return found


@dataclasses.dataclass(frozen=True)
class Known:
    """What an expression computes."""

    name: str
    """A key of `ACTIVATIONS`."""
    exact: bool
    """Its slope is the function's everywhere; False where it differs at exactly 0: clamp(x, 0) has 1 there,
    maximum(x, 0) has 1/2, relu 0."""
    gate: int = 0
    """Of two inputs, the one that the activation is on."""


@functools.lru_cache(maxsize=4096)
def known(expression: Expression) -> Known | None:
    """The activation that an expression of one input is; of two inputs, the one that is multiplied by the other."""
    with aside():
        inputs = _samples(expression.inputs)
        found = _value_and_slopes(expression.run, inputs)
    if found is None:
        return None
    value, *slopes = found
    for row in ACTIVATIONS.values():
        for gate, x in enumerate(inputs):
            up = inputs[1 - gate] if len(inputs) > 1 else torch.ones_like(x)
            by_gate, by_up = row.slope(x) * up, row.value(x)
            if not _agree(value, by_up * up, relative=1e-5, absolute=1e-9):
                continue
            expected = (by_gate, by_up) if gate == 0 else (by_up, by_gate)
            exact = agree_in_slope(slopes, expected[: len(inputs)], x)
            if exact is not None:
                return Known(row.name, exact, gate)
    return None


def samples() -> Tensor:
    """Numbers [N] in fp64 that tell the functions apart: 0, small ones, an uneven grid in the middle, far tails."""
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    middle = [12.0 * (2.0 * math.fmod(i * golden, 1.0) - 1.0) for i in range(1, 256)]
    small = [sign * 10.0**-k for k in range(9) for sign in (-1.0, 1.0)]
    tails = [sign * 3.0 * 10.0**k for k in (1, 2, 3, 4, 6, 8, 12, 20, 30) for sign in (-1.0, 1.0)]
    return torch.tensor([0.0, *middle, *small, *tails], dtype=torch.float64, device="cpu")


def agree_in_slope(found: Sequence[Tensor], expected: Sequence[Tensor], x: Tensor) -> bool | None:
    """Whether slopes agree: True everywhere, False but for x = 0, None not even there.

    Where exp overflows, eager's slope may be NaN; such numbers are not compared.
    """
    compared = x.abs() < _OVERFLOW
    close = torch.ones_like(compared)
    for one, other in zip(found, expected, strict=True):
        overflown = one.isnan() & ~compared
        # Libraries round sqrt(2/pi) and its multiples to 8 digits, slopes that pass through 0 have no relative error.
        close &= ((one - other).abs() <= 1e-6 + 1e-5 * other.abs()) | overflown
    if bool(close.all()):
        return True
    return False if bool(close[x != 0].all()) else None


def _samples(count: int) -> tuple[Tensor, ...]:
    x = samples()
    if count == 1:
        return (x,)
    ups = torch.tensor(_UPS, dtype=torch.float64, device="cpu")
    return x.repeat(len(ups)), ups.repeat_interleave(len(x))


def _value_and_slopes(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """(value, slope by each input), or None for what is no function of fp64 numbers."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    try:
        value = function(*inputs)
        if not isinstance(value, Tensor) or value.shape != inputs[0].shape or not value.requires_grad:
            return None
        slopes = torch.autograd.grad(value.sum(), inputs, allow_unused=True, materialize_grads=True)
    except (RuntimeError, TypeError, ValueError):  # an op that takes no fp64, or no gradient
        return None
    return value.detach(), *slopes


def _agree(found: Tensor, expected: Tensor, *, relative: float, absolute: float) -> bool:
    return bool(((found - expected).abs() <= absolute + relative * expected.abs()).all())


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Grad mode, autocast and hooks on saved tensors of whoever compiles have no part in what runs inside."""
    hooks = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False), hooks:
        yield


def _as_it_is(saved: Tensor) -> Tensor:
    return saved
