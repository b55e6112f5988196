"""Runs what lowering makes of precision="fp8" for sm_90 on a CPU, as `hopper_on_cpu.py` does in 16 bits.

It must be as close to exact arithmetic on the masked weights as the same step on the reference is. The two differ, by
more than 16 bits would: what an epilogue does not round to them in between may fall on another side of a step of eight.
An epilogue that finds another tensor's amax, or an operand in another's place, is far off. Exits with 1 where one is.
"""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch import Tensor, nn

from tests.compiler.test_backend import GeluMLP, SwiGLU
from tests.lowering.hopper_on_cpu import CALLS, install_references
from tests.masked import gradients, live_masks, masked_call

MODELS: dict[str, Any] = {"gelu": GeluMLP, "swiglu": SwiGLU}
RECIPES = ("fst", "ste")
EXPECTED = {
    "gelu": {"scaled_mm_act", "scaled_mm_dact"},
    "swiglu": {"scaled_mm_glu", "scaled_mm_dglu"},
}
"""Fused products that the graphs must have called; the row-wise recipes' dH is a dense product."""


def step(call: Any, model: nn.Module) -> dict[str, Tensor]:
    """Output and gradients of one forward and backward, bf16 autocast, fp32 masters."""
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = call(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y))
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, **gradients(model)}


def compiled_step(model: nn.Module, inner: str, recipe: str, target: str) -> dict[str, Tensor]:
    torch._dynamo.reset()
    options = {"inner": inner, "target": target, "min_speedup": 0.0, "gradient": "dense", "decay": 0.0}
    options |= {"precision": "fp8", "recipe": recipe}
    return step(torch.compile(model, backend="s24", options=options, fullgraph=True), model)


def check(name: str, inner: str, recipe: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]()
    expected = compiled_step(copy.deepcopy(model), inner, recipe, "cpu")
    CALLS.clear()
    found = compiled_step(model, inner, recipe, "sm_90")
    masks = live_masks(model)
    exact = step(lambda x: masked_call(model, masks, x), model)
    for key, value in exact.items():
        assert found[key].dtype == value.dtype
        ours, theirs = (float((one[key].float() - value.float()).norm()) for one in (found, expected))
        assert ours <= 1.25 * theirs, f"{name} {inner} {recipe}: {key}, {ours} where the reference is off by {theirs}"
    fused = {op for op in EXPECTED[name] if recipe == "fst" or not op.startswith("scaled_mm_d")}
    assert fused <= set(CALLS), CALLS


if __name__ == "__main__":
    install_references()
    for name in MODELS:
        for recipe in RECIPES:
            for inner in ("aot_eager", "inductor"):
                check(name, inner, recipe)
    print("checked 8 steps")
