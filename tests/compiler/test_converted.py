"""Models whose linears somebody else converted to float8: layers that we would have taken say so, the rest runs on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import s24compile
from benchmarks.float8_dense import _Float8Product, convert
from tests.compiler.test_backend import GeluMLP, SwiGLU
from tests.masked import gradients


@torch._dynamo.allow_in_graph
class _Float8Matmul(torch.autograd.Function):
    """As nanochat's, and torchao's, one call to Dynamo, which does not look into it."""

    forward = _Float8Product.forward
    backward = _Float8Product.backward


class OpaqueLinear(nn.Linear):
    """nn.Linear through it."""

    def forward(self, x: Tensor) -> Tensor:
        y = _Float8Matmul.apply(x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class InferenceLinear(nn.Linear):
    """nn.Linear by torch._scaled_mm itself."""

    def forward(self, x: Tensor) -> Tensor:
        one, w = torch.ones((), device=x.device), self.weight.to(torch.float8_e4m3fn)
        y = torch._scaled_mm(x.flatten(0, -2).to(torch.float8_e4m3fn), w.t(), one, one, out_dtype=torch.bfloat16)
        return y.view(*x.shape[:-1], -1)


def opaque(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = OpaqueLinear


def inference(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.__class__ = InferenceLinear


def own(model: nn.Module) -> None:
    convert(model, own=True)


class Block(nn.Module):
    """A projection in place of attention, and a feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.mlp = nn.Sequential(nn.Linear(64, 64)), GeluMLP(64, 128)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


@pytest.mark.parametrize("precision", ["auto", "fp8"])
@pytest.mark.parametrize("layer", [GeluMLP, SwiGLU])
@pytest.mark.parametrize(
    ("converting", "name"),
    [(own, "an autograd.Function"), (opaque, "test_converted._Float8Matmul"), (inference, "torch._scaled_mm")],
)
def test_name_the_precision_that_does_it_here(
    converting: Callable[[nn.Module], None], name: str, layer: type[nn.Module], precision: str
) -> None:
    model = layer(64, 128)
    converting(model)
    fast = torch.compile(model, backend="s24", options={"inner": "aot_eager", "precision": precision})
    (site,) = s24compile.explain(fast, torch.randn(2, 16, 64)).sites
    assert (site.status, site.family, site.shape) == (
        "refused", {GeluMLP: "gelu", SwiGLU: "swiglu"}[layer], "64 -> 128 -> 64",
    )  # fmt: skip
    assert f"converted to float8 already, by {name}" in site.reason.replace("tests.compiler.", "")
    assert "leave the layer unconverted, and precision='fp8' multiplies eight-bit floats in it" in site.reason


@pytest.mark.parametrize("converting", [own, opaque])
def test_train_beside_converted_attention(converting: Callable[[nn.Module], None]) -> None:
    model = Block()
    converting(model.attention)
    plain = copy.deepcopy(model)
    options = {"inner": "aot_eager", "precision": "fp8", "min_speedup": 0.0, "gradient": "dense"}
    fast, x = torch.compile(model, backend="s24", options=options, fullgraph=True), torch.randn(2, 16, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = fast(x), plain.attention(x)
    y.sum().backward()
    assert set(s24compile.sparse_weights(model)) == {"mlp.fc1.weight", "mlp.fc2.weight"}
    assert gradients(model).keys() == dict(model.named_parameters()).keys()
    assert bool(expected.isfinite().all())
