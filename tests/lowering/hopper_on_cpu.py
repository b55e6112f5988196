"""Runs what lowering makes for sm_90 on a CPU: Triton's kernels in its interpreter, CUTLASS's GEMMs as their references.

A program of its own (`test_hopper_numerics.py` starts it): the interpreter must be chosen before Triton is imported, and
the kernels behind the direct ops are looked up once a process. Exits with 1 where a number is off.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from s24compile.kernels import providers
from s24compile.kernels.gemm.cutlass import PROVIDERS
from tests.lowering.test_graphs import FusedGated, Gated, GeluMLP
from tests.masked import gradients, live_masks, masked_call


class Residual(nn.Module):
    """A block compiled by itself: its last sum is what the caller gets."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Gated(nn.functional.silu)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


MODELS: dict[str, Any] = {
    "residual": Residual,
    "gelu": GeluMLP,
    "down": GeluMLP,
    "swiglu": lambda: Gated(nn.functional.silu),
    "geglu": lambda: FusedGated(nn.functional.gelu),
}
OPTIONS: dict[str, dict[str, Any]] = {"down": {"targets": "down"}}
CALLS: list[str] = []


def install_references() -> None:
    """CUTLASS's kernels, as their references compute them; each call is noted."""
    for op, provider in PROVIDERS.items():
        own = providers.find(op, "reference")
        assert own is not None
        PROVIDERS[op] = dataclasses.replace(provider, run=noted(op, own.run))


def noted(op: str, run: Any) -> Any:
    """The same function, whose calls are in CALLS."""

    def call(*args: Any) -> Any:
        CALLS.append(op)
        return run(*args)

    return call


def check(name: str, inner: str, gradient: str) -> None:
    """One forward and backward against dense arithmetic on the masked weights, bf16 autocast, fp32 masters."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    CALLS.clear()
    model = MODELS[name]()
    options = {"inner": inner, "target": "sm_90", "min_speedup": 0.0, "gradient": gradient, "decay": 0.0}
    options |= OPTIONS.get(name, {})
    fast = torch.compile(model, backend="s24", options=options, fullgraph=True)
    ours, theirs = (torch.randn(2, 8, 16).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fast(ours)
        expected = masked_call(model, live_masks(model), theirs)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    got = {"": ours.grad, **gradients(model)}
    expected.backward(cotangent)
    wanted = {"": theirs.grad, **gradients(model)}
    assert close(y, expected), f"{name} {inner}: forward"
    for key, value in wanted.items():
        pruned = gradient == "mvue" and value.dim() == 2 and key != ""
        assert got[key].dtype == value.dtype
        assert pruned or close(got[key], value), f"{name} {inner} {gradient}: gradient of {key or 'x'}"
        assert not pruned or nn.functional.cosine_similarity(got[key].flatten(), value.flatten(), dim=0) > 0.4
    assert (name == "gelu") == ("mm_act" in CALLS), CALLS
    assert (name in ("gelu", "down")) == ("mm_dact_sum" in CALLS), CALLS
    assert (name not in ("gelu", "down")) == ("mm_glu" in CALLS) == ("mm_dglu" in CALLS), CALLS
    assert (name == "residual") == ("mm_add" in CALLS), CALLS
    linears = 1 if name == "down" else 2
    assert len(CALLS) == linears * (3 if gradient == "mvue" else 2), CALLS


def close(a: Tensor, b: Tensor) -> bool:
    """Within bf16 rounding of a few operations, in the norm."""
    return bool((a.float() - b.float()).norm() <= 2e-2 * b.float().norm())


if __name__ == "__main__":
    install_references()
    for name in MODELS:
        for inner in ("aot_eager", "inductor"):
            for gradient in ("dense", "mvue"):
                check(name, inner, gradient)
    print(f"checked {len(MODELS) * 4} steps")
