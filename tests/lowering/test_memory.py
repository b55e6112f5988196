"""`memory="save"`: the hidden activation is recomputed in the backward, and the gradients stay what they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.lowering.test_graphs import FusedGated, Gated, GeluMLP

MODELS = {
    "gelu": GeluMLP,
    "swiglu": lambda: Gated(nn.functional.silu),
    "geglu": lambda: FusedGated(nn.functional.gelu),
}


def saved(model: nn.Module, inner: str, memory: str) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that autograd holds between forward and backward, and the gradients."""
    torch._dynamo.reset()
    model.zero_grad()
    options = {"inner": inner, "memory": memory, "gradient": "dense", "decay": 0.0}
    fast = torch.compile(model, backend="s24", options=options, fullgraph=True)
    x = torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = fast(x)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in y.grad_fn.saved_tensors}
    y.square().sum().backward()
    return sum(held.values()), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
@pytest.mark.parametrize("name", MODELS)
def test_save_the_hidden_activation_s_bytes_and_no_gradient_s_value(name: str, inner: str) -> None:
    model = MODELS[name]()
    fast_bytes, fast_gradients = saved(model, inner, "speed")
    lean_bytes, lean_gradients = saved(model, inner, "save")
    hidden = 2 * 64 * 32 * 4  # T x F in fp32
    assert fast_bytes - lean_bytes == hidden
    for key, gradient in fast_gradients.items():
        torch.testing.assert_close(lean_gradients[key], gradient, rtol=1e-5, atol=1e-5)
