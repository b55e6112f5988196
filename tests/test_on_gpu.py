"""What only a GPU shows: training steps on the real kernels, in CUDA graphs, with less memory, without a host sync."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import s24compile
from s24compile.demo.model import Block, GPTConfig
from tests.masked import gradients, live_masks, masked_call

pytestmark = pytest.mark.gpu


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(256, 704, bias=False) for _ in range(2))
        self.down = nn.Linear(704, 256, bias=False)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


MODELS = {
    "gelu": lambda: nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)),
    "swiglu": Gated,
    "block": lambda: Block(GPTConfig(64, 64, 1, 4, 256, dropout=0.0, bias=False)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    torch._dynamo.reset()
    return MODELS[request.param]().cuda()


def options(**given):
    return {"min_speedup": 0.0, "decay": 0.0, "gradient": "dense", **given}


@pytest.mark.parametrize("memory", ["speed", "save"])
def test_agree_with_masked_dense_arithmetic(model, memory):
    compiled = torch.compile(model, backend="s24", options=options(memory=memory))
    x, other = (torch.randn(4, 64, 256, device="cuda", requires_grad=True) for _ in range(2))
    other.data.copy_(x.data)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        compiled(x)
        masks = live_masks(model)
        expected = masked_call(model, masks, other)
    cotangent = torch.randn_like(expected)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = compiled(x)
    y.backward(cotangent)
    ours = {"x": x.grad, **gradients(model)}
    expected.backward(cotangent)
    theirs = {"x": other.grad, **gradients(model)}
    assert (y.float() - expected.float()).norm() <= 2e-2 * expected.float().norm()
    for name, gradient in theirs.items():
        assert (ours[name].float() - gradient.float()).norm() <= 3e-2 * gradient.float().norm(), name


def test_train_in_cuda_graphs(model):
    """Steps change the packed weights in place; a replayed graph must read the new ones."""
    compiled = torch.compile(model, backend="s24", options=options(mode="reduce-overhead"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, target = torch.randn(4, 64, 256, device="cuda"), torch.randn(4, 64, 256, device="cuda")
    losses = []
    for _ in range(8):
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(compiled(x).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert s24compile.sparse_weights(model)
    assert losses == sorted(losses, reverse=True)
    with torch.autocast("cuda", dtype=torch.bfloat16), torch.no_grad():
        expected = masked_call(model, live_masks(model), x)
        got = compiled(x)
    assert (got.float() - expected.float()).norm() <= 2e-2 * expected.float().norm()


def test_never_wait_for_the_gpu_in_a_step(model):
    compiled = torch.compile(model, backend="s24", options=options(decay=1e-4, gradient="mvue", mask_interval=2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    x = torch.randn(4, 64, 256, device="cuda")
    for number in range(6):
        torch.cuda.set_sync_debug_mode("error" if number >= 3 else "default")
        try:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = compiled(x).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(weight.steps == 6 for weight in s24compile.sparse_weights(model).values())
