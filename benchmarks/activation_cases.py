"""The two passes over memory of recipe="activation" that activation.py times, and the bytes that each must move.

Legend: T tokens, F hidden width. An element of [T, F] takes 2 bytes, of a packed operand 1.125.

    forward     reads Z, writes P                                              3.125 bytes an element
    backward    reads dP and P, writes dZ's values, and as many estimates      4.125, 5.25 or 6.375
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory_cases import Case, normal, seed
from s24compile.kernels import ops, providers

FORMAT = "sm90"
FORWARD_BYTES, BACKWARD_BYTES, ESTIMATE_BYTES = 3.125, 4.125, 1.125
THRESHOLD = 1.4
"""What is taken off normal numbers, so that 8% stay above zero."""


def hidden(tokens: int, width: int, turned: bool = False) -> Tensor:
    """Z [T, F], bf16."""
    z = normal(tokens, width)
    z -= THRESHOLD
    return z.t().contiguous().t() if turned else z


def all_cases(tokens: int, widths: Sequence[int], act: str) -> Iterator[Case]:
    """Forward and backward of each width, reading row- and column-major tensors."""
    for width in widths:
        for turned in (False, True):
            yield forward(tokens, width, act, turned)
            yield backward(tokens, width, act, 2, turned)
    for estimates in (1, 0):
        yield backward(tokens, widths[0], act, estimates, False)


def forward(tokens: int, width: int, act: str, turned: bool) -> Case:
    """activation_pack."""

    def make() -> Callable[[], object]:
        return functools.partial(ops.activation_pack, hidden(tokens, width, turned), None, act, 1.0, FORMAT)

    name = "activation_pack" + (", column-major" if turned else "")
    return Case(name, f"{tokens}x{width}", round(FORWARD_BYTES * tokens * width), make)


def backward(tokens: int, width: int, act: str, estimates: int, turned: bool) -> Case:
    """activation_backward_pack with both estimates, that of dZ alone, or none."""

    def make() -> Callable[[], object]:
        return functools.partial(ops.activation_backward_pack, *arguments(tokens, width, act, estimates, turned))

    name = "activation_backward_pack" + (f", {estimates} estimates" if estimates < 2 else "")
    moved = (BACKWARD_BYTES + estimates * ESTIMATE_BYTES) * tokens * width
    return Case(name + (", column-major" if turned else ""), f"{tokens}x{width}", round(moved), make)


def arguments(tokens: int, width: int, act: str, estimates: int, turned: bool, sums: bool = False) -> tuple[Any, ...]:
    """Of activation_backward_pack."""
    values, metadata, _ = ops.activation_pack(hidden(tokens, width), None, act, 1.0, FORMAT)
    dp = normal(tokens, width, turned=turned)
    return dp, values, metadata, tokens, width, FORMAT, act, 1.0, seed(), estimates > 0, estimates > 1, sums


def check(act: str) -> int:
    """Both passes against their references, to the bit; the counts, which are sums, to rounding. Returns how many."""
    calls: list[tuple[str, tuple[Any, ...]]] = []
    for tokens, width in ((2000, 1536), (7, 64)):
        for turned in (False, True):
            calls.append(("activation_pack", (hidden(tokens, width, turned), None, act, 1.0, FORMAT)))
            for estimates in (0, 1, 2):
                given = arguments(tokens, width, act, estimates, turned, sums=estimates == 2)
                calls.append(("activation_backward_pack", given))
    for op, given in calls:
        results = []
        for provider in ("triton", "reference"):
            with providers.only(provider):
                results.append(getattr(ops, op)(*given))
        for place, (found, expected) in enumerate(zip(*results, strict=True)):
            summed = found.dtype == torch.float32
            rtol, atol = (1e-4, 1e-3) if summed else (0.0, 0.0)
            close = torch.allclose(found.double(), expected.double(), rtol=rtol, atol=atol, equal_nan=True)
            assert close, f"{op}: result {place} of {len(results[0])} is not the reference's"
    return len(calls)
