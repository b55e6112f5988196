"""Runs layers whose hidden state is 2:4 as lowered for sm_90, on a CPU: as hopper_on_cpu.py, a program of its own."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.lowering.hopper_on_cpu import CALLS, close, install_references  # first: it chooses the interpreter

# isort: split
import torch
from torch import nn

from tests.lowering.test_hidden_graphs import SPARSE, SquaredRelu
from tests.masked import gradients
from tests.pruned import pruned_call


def check(bias: bool, inner: str, gradient: str) -> None:
    """One forward and backward against dense arithmetic on the pruned state, bf16 autocast, fp32 masters."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    CALLS.clear()
    model = SquaredRelu(bias)
    options = {**SPARSE, "inner": inner, "target": "sm_90", "min_speedup": 0.0, "gradient": gradient}
    fast = torch.compile(model, backend="s24", options=options, fullgraph=True)
    ours, theirs = (torch.randn(2, 9, 16).requires_grad_() for _ in range(2))
    theirs.data.copy_(ours.data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fast(ours)
        expected = pruned_call(model, ["c_proj.weight"], theirs)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    got = {"": ours.grad, **gradients(model)}
    expected.backward(cotangent)
    wanted = {"": theirs.grad, **gradients(model)}
    assert close(y, expected), f"{bias} {inner}: forward"
    for key, value in wanted.items():
        estimated = gradient == "mvue" and value.dim() == 2
        assert got[key].dtype == value.dtype
        assert estimated or close(got[key], value), f"{bias} {inner} {gradient}: gradient of {key or 'x'}"
        assert not estimated or nn.functional.cosine_similarity(got[key].flatten(), value.flatten(), dim=0) > 0.4
    assert ["mm"] * (4 if gradient == "mvue" else 2) == CALLS, CALLS


if __name__ == "__main__":
    install_references()
    cases = [(False, "inductor", "mvue"), (True, "aot_eager", "mvue"), (True, "inductor", "dense")]
    for case in cases:
        check(*case)
    print(f"checked {len(cases)} steps")
