"""What is kept for the backward: the bytes that are told are those that autograd holds, and `memory="save"`, which
recomputes the hidden activation and leaves the gradients what they were.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import s24compile
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


@pytest.mark.parametrize(("name", "kept"), [("gelu", False), ("swiglu", True), ("geglu", True)])
def test_say_where_save_saves_nothing(name: str, kept: bool) -> None:
    options = {"inner": "aot_eager", "memory": "save", "targets": "down"}
    (site,) = s24compile.explain(
        torch.compile(MODELS[name](), backend="s24", options=options), torch.randn(4, 16)
    ).sites
    assert ("memory='save' keeps its hidden state" in site.reason) == kept == ("H" in dict(site.saved_bytes))


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


@pytest.mark.parametrize("memory", ["speed", "save"])
@pytest.mark.parametrize("name", ["gelu", "swiglu"])
def test_keep_the_hidden_state_in_eight_bits(name: str, memory: str, caplog: pytest.LogCaptureFixture) -> None:
    model, options = MODELS[name](), {"inner": "aot_eager", "precision": "fp8", "memory": memory}
    fast, x = torch.compile(model, backend="s24", options=options, fullgraph=True), torch.randn(2, 64, 16)
    with caplog.at_level(logging.INFO, logger="s24compile.lowering"):
        fast(x).sum().backward()
    (site,) = s24compile.explain(fast, x).sites
    hidden = 2 * 64 * 32
    assert dict(site.saved_bytes) == {"Z": (1 if name == "gelu" else 2) * hidden * 4, "H": hidden}
    assert site.recomputable_bytes == 0
    assert ("memory='save' keeps its hidden state, which is in eight bits" in site.reason) == (memory == "save")
    assert f"H {hidden / 1000:.1f} kB" in caplog.text


class Between(GeluMLP):
    """`act` stands in front of the second linear."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Checkpointed(FusedGated):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def frozen() -> nn.Module:
    model = GeluMLP()
    model.fc2.weight.requires_grad_(False)
    return model


T, F, FP32 = 128, 32, 4
LAYERS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    # name: the layer, Z in T x F, H in T x F
    **{name: (make, 1 if name == "gelu" else 2, 1) for name, make in MODELS.items()},
    "dropout": (lambda: Between(lambda z: nn.functional.dropout(nn.functional.gelu(z), 0.1)), 1, 1),
    "quick gelu": (lambda: Between(lambda z: z * torch.sigmoid(1.702 * z)), 1, 1),
    "frozen down": (frozen, 1, 0),
    "checkpointed": (lambda: Checkpointed(nn.functional.silu), 0, 0),
}


@pytest.mark.parametrize(
    ("name", "memory"), [(name, "speed") for name in LAYERS] + [("geglu", "save"), ("dropout", "save")]
)
def test_tell_the_bytes_that_autograd_holds(name: str, memory: str) -> None:
    make, z, h = LAYERS[name]
    recomputed = T * F * FP32 if name in MODELS else 0
    fast = torch.compile(make(), backend="s24", options={"memory": memory})
    x = torch.randn(2, 64, 16, requires_grad=True)
    y = fast(x)  # torch 2.11 frees what is saved with the output
    held = {
        t.untyped_storage().data_ptr(): t.nbytes
        for t in y.grad_fn.saved_tensors
        if t.is_floating_point() and t.numel() in (T * F, T * 2 * F)
    }
    report = s24compile.explain(fast, x)
    wanted = {"Z": z * T * F * FP32, "H": h * T * F * FP32 - (recomputed if memory == "save" else 0)}
    assert report.saved_bytes == {key: count for key, count in wanted.items() if count}
    assert sum(report.saved_bytes.values()) == sum(held.values())
    assert ("memory='save' saves 16.4 kB less" in str(report)) == (recomputed > 0 and memory == "speed")


@pytest.mark.parametrize("memory", ["speed", "save"])
def test_log_the_bytes_that_a_graph_saves(memory: str, caplog: pytest.LogCaptureFixture) -> None:
    fast = torch.compile(MODELS["geglu"](), backend="s24", options={"memory": memory, "inner": "aot_eager"})
    with caplog.at_level(logging.INFO, logger="s24compile"):
        fast(torch.randn(2, 64, 16, requires_grad=True))
    (logged,) = [r.getMessage() for r in caplog.records if "this graph saves" in r.getMessage()]
    assert logged.endswith("Z 32.8 kB, H 16.4 kB, X 8.2 kB" if memory == "speed" else "Z 32.8 kB, X 8.2 kB")


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_log_what_the_forward_of_a_checkpointed_layer_saves_and_not_what_its_backward_does(
    inner: str, caplog: pytest.LogCaptureFixture
) -> None:
    fast = torch.compile(Checkpointed(nn.functional.silu), backend="s24", options={"inner": inner})
    # A graph that Inductor has in its cache is not lowered again, so nothing of it is logged.
    with torch._inductor.config.patch(force_disable_caches=True), caplog.at_level(logging.INFO, logger="s24compile"):
        fast(torch.randn(2, 64, 16, requires_grad=True)).sum().backward()
    (logged,) = [r.getMessage() for r in caplog.records if "this graph saves" in r.getMessage()]
    assert logged.endswith("this graph saves X 8.2 kB")


def test_keep_nothing_where_there_is_no_backward(caplog: pytest.LogCaptureFixture) -> None:
    fast: Any = torch.compile(GeluMLP(), backend="s24", options={"inner": "aot_eager"})
    x = torch.randn(2, 64, 16)
    with torch.no_grad(), caplog.at_level(logging.INFO, logger="s24compile"):
        fast(x)
        assert s24compile.explain(fast, x).saved_bytes == {}
    assert not [r for r in caplog.records if "this graph saves" in r.getMessage()]


def test_count_the_layers_of_symbolic_sizes_by_their_example() -> None:
    fast = torch.compile(GeluMLP(), backend="s24", dynamic=True)
    torch._dynamo.reset()
    x = torch.randn(2, 64, 16)
    torch._dynamo.mark_dynamic(x, 1)
    assert s24compile.explain(fast, x).saved_bytes == {"Z": T * F * FP32, "H": T * F * FP32}
