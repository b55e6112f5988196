"""Timing of training steps: dense and sparse variants of one module, checked, interleaved, medians.

A step is forward and backward on random normal data under bf16 autocast with fp32 master weights. For a sparse variant
every step packs the weights anew, as it does after an optimizer step, and every 40th searches masks: `refresh` stands
for the optimizer, whose own time is left out of both variants.

Times are the GPU's: a sleep kernel holds the stream while the CPU queues a burst. A layer alone is bound by the CPU on
a slow host, dense or sparse, where a model is not (benchmarks/nanogpt.py measures models by the clock on the wall);
`host_us` says what a step costs the CPU.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import s24compile
from benchmarks.float8_dense import convert
from benchmarks.timing import gpu_ms, in_turns, queue_us
from tests.masked import masked_call

FLOAT8 = "float8"
"""Dense in eight bits, tensorwise, compiled by Inductor: benchmarks/float8_dense.py."""
DENSE: dict[str, dict[str, Any]] = {
    "inductor": {},
    "inductor max-autotune": {"mode": "max-autotune-no-cudagraphs"},
    FLOAT8: {},
}


@dataclasses.dataclass
class Variant:
    """One way to compile a module, with its own copy of the weights."""

    name: str
    module: nn.Module
    run: Callable[[Tensor], Tensor]
    sparse: bool

    def step(self, x: Tensor, gradient: Tensor, search: bool) -> None:
        """One forward and backward; packing included."""
        if self.sparse:
            s24compile.refresh(self.module, search=search)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            y = self.run(x)
        y.backward(gradient)

    def clear(self, x: Tensor) -> None:
        """Forgets gradients, as `zero_grad(set_to_none=True)` does."""
        self.module.zero_grad(set_to_none=True)
        x.grad = None


def variants(module: nn.Module, dense: tuple[str, ...], sparse: dict[str, dict[str, Any]]) -> list[Variant]:
    """Copies of `module` compiled dense with the named Inductor modes, and by s24 with the given options."""
    # They share one code object, and Dynamo counts what it compiled for it: 8 and the next would run eagerly.
    torch._dynamo.config.recompile_limit = 64
    made = []
    for name in dense:
        own = copy.deepcopy(module)
        if name == FLOAT8:
            convert(own)
        made.append(Variant(name, own, torch.compile(own, dynamic=False, **DENSE[name]), False))
    for name, options in sparse.items():
        own = copy.deepcopy(module)
        made.append(Variant(name, own, torch.compile(own, backend="s24", options=options, dynamic=False), True))
    return made


def check(variant: Variant, x: Tensor, narrow: bool = False) -> float:
    """Largest difference of a sparse forward from masked dense arithmetic, relative to the largest output.

    Args:
        narrow: the variant computes in eight bits, so that its rounding is allowed.

    Raises:
        AssertionError: nothing is sparse, or the difference is more than its rounding.
    """
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        y = variant.run(x)
        masks = {name: weight.mask for name, weight in s24compile.sparse_weights(variant.module).items()}
        assert masks, f"{variant.name} has no sparse weight"
        expected = masked_call(variant.module, masks, x)
    error = ((y.float() - expected.float()).abs().max() / expected.float().abs().max()).item()
    assert error < (1e-1 if narrow else 2e-2), f"{variant.name}: forward is off by {error}"
    return error


def medians_ms(candidates: list[Variant], x: Tensor, rounds: int = 5) -> dict[str, float]:
    """Median GPU milliseconds of a step of each variant; bursts of 40 steps take turns."""
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        gradient = torch.randn_like(candidates[0].run(x))
    for variant in candidates:
        for _ in range(3):
            variant.step(x, gradient, search=True)
            variant.clear(x)
    return in_turns({v.name: functools.partial(_burst_ms, v, x, gradient) for v in candidates}, rounds)


HELD_STEPS = 8
"""Steps queued behind one sleep kernel: their launches fit the queue of the driver, so that the CPU never waits."""
HOLD_CYCLES = 80_000_000
"""About 45 ms: longer than any host here takes to queue HELD_STEPS steps."""


def _burst_ms(variant: Variant, x: Tensor, gradient: Tensor, steps: int = 40) -> float:
    """Of `steps` steps, the first with a mask search."""
    held = (functools.partial(_steps, variant, x, gradient, first == 0) for first in range(0, steps, HELD_STEPS))
    return sum(gpu_ms(work, HOLD_CYCLES) for work in held) / steps


def _steps(variant: Variant, x: Tensor, gradient: Tensor, search_first: bool = False) -> None:
    """HELD_STEPS steps."""
    for i in range(HELD_STEPS):
        variant.step(x, gradient, search=search_first and i == 0)
        variant.clear(x)


def host_us(variant: Variant, x: Tensor) -> float:
    """CPU microseconds to queue a step, with nothing to wait for."""
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        gradient = torch.randn_like(variant.run(x))
    return queue_us(functools.partial(_steps, variant, x, gradient), HOLD_CYCLES) / HELD_STEPS


def peak_bytes(variant: Variant, x: Tensor) -> int:
    """Peak memory of one step above what the weights hold."""
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        gradient = torch.randn_like(variant.run(x))
    variant.clear(x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    variant.step(x, gradient, search=False)
    peak = torch.cuda.max_memory_allocated() - before
    variant.clear(x)
    return peak
