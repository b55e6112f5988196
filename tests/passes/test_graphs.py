"""What surrounds a layer: dynamic shapes, autocast, checkpoint bodies, grad mode, several layers in one graph."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from s24compile import passes
from s24compile.config import Config
from tests import ffns
from tests.masked import gradients, masked_call
from tests.passes.harness import Capture, check_masked, input_of, train_step


class Stack(nn.Module):
    """Several layers in a row with residuals, checkpointed by `wrap`."""

    def __init__(self, *layers: nn.Module, wrap=lambda layer, x: layer(x)) -> None:
        super().__init__()
        self.Blocks = nn.ModuleList(layers)
        self.wrap = wrap

    def forward(self, x):
        for block in self.Blocks:
            x = self.wrap(block, x) + x
        return x


def checkpointed(layer, x):
    return checkpoint(layer, x, use_reentrant=False)


def nested(layer, x):
    return checkpoint(lambda x: checkpoint(layer, x, use_reentrant=False), x, use_reentrant=False)


FALCON = lambda: ffns.Plain(F.gelu, lambda i, o: ffns.Spelled(lambda x, w, b: x @ w.T + b, i, o))  # noqa: E731


@pytest.mark.parametrize("wrap", [checkpointed, nested])
@pytest.mark.parametrize(
    "make",
    [FALCON, *(ffns.TAKEN[n].make for n in ("act_gelu", "linear_conv1d", "product_torch", "act_gelu_bloom_function"))],
)
def test_enter_checkpoint_bodies(make, wrap):
    torch.manual_seed(0)
    model, capture = Stack(make(), make(), wrap=wrap), Capture()
    check_masked(model, capture, input_of(), reference=Stack(*model.Blocks))
    assert capture.linears == 2 * len([p for p in make().parameters() if p.dim() == 2])
    assert [site.path for site in capture.sites] == ["Blocks.0", "Blocks.1"]
    assert all(name.startswith(site.path) for site in capture.sites for name in site.weights)


class Region(nn.Module):
    """One layer of a nested compile region, whose body is shared between layers."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.ffn = ffn

    @torch.compiler.nested_compile_region
    def forward(self, x):
        return self.ffn(x)


@pytest.mark.parametrize("name", ["act_gelu", "product_torch"])
def test_share_a_body_between_its_calls(name):
    torch.manual_seed(0)
    make = ffns.TAKEN[name].make
    model, capture = Stack(*(Region(make()) for _ in range(3))), Capture()
    x = input_of()
    torch._dynamo.reset()
    y = torch.compile(model, backend=capture)(x)
    expected = masked_call(model, capture.masks, x)
    torch.testing.assert_close(y, expected)
    (rewrite,) = capture.rewrites
    assert len({request.weights for request in rewrite.operands}) == len(rewrite.operands) == 6
    weights = {name for name, p in model.named_parameters() if p.dim() == 2}
    assert {name for site in capture.sites for name in site.weights} == weights


@pytest.mark.parametrize(
    "name",
    [
        "act_gelu_new",
        "linear_conv1d",
        "act_gelu_erf",
        "split_chunk",
        "split_slices",
        "gated_gelu_new",
        "views_between",
        "act_gelu_bloom_function",
        "linear_flattened",
    ],
)
def test_match_under_dynamic_shapes(name):
    torch.manual_seed(0)
    model, capture = ffns.TAKEN[name].make(), Capture()
    check_masked(model, capture, input_of(2, 8), dynamic=True)
    assert capture.linears == ffns.TAKEN[name].linears
    y = torch.compile(model, backend=capture, dynamic=True)(input_of(3, 5, seed=1))
    torch.testing.assert_close(y, masked_call(model, capture.masks, input_of(3, 5, seed=1)))
    assert len(capture.rewrites) == 1, "a second shape compiled again"


class ScaledGelu(ffns.Plain):
    """Tanh GELU whose constant is an attribute: symbolic under dynamic=True."""

    def __init__(self) -> None:
        super().__init__(F.gelu)
        self.scale = 0.7978845608

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(0.5 * h * (1.0 + torch.tanh(self.scale * (h + 0.044715 * h**3))))


def test_compile_again_when_a_symbolic_constant_changes():
    torch.manual_seed(0)
    model, capture = ScaledGelu(), Capture()
    check_masked(model, capture, input_of(), dynamic=True)
    assert capture.linears == 2
    model.scale = 0.5
    y = torch.compile(model, backend=capture, dynamic=True)(input_of())
    torch.testing.assert_close(y, model(input_of()))
    assert [rewrite.count for rewrite in capture.rewrites] == [2, 0]


class T5Ffn(nn.Module):
    """T5's: the hidden activation is cast to the dtype of the last weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wi, self.wo = nn.Linear(ffns.D, ffns.H, bias=False), nn.Linear(ffns.H, ffns.D, bias=False)

    def forward(self, x):
        h = F.dropout(F.relu(self.wi(x)), 0.1, False)
        if h.dtype != self.wo.weight.dtype:
            h = h.to(self.wo.weight.dtype)
        return self.wo(h)


def _autocast_check(model: nn.Module, capture: Capture, x: torch.Tensor) -> None:
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        y, dx = train_step(torch.compile(model, backend=capture), x)
        found = gradients(model)
        expected, expected_dx = train_step(lambda x: masked_call(model, capture.masks, x), x)
    wanted = gradients(model)
    assert y.dtype == expected.dtype
    close = {"rtol": 2**-6, "atol": 2**-5}  # a few roundings to 8 bits of mantissa, sums of up to 64 terms
    torch.testing.assert_close(y, expected, **close)
    torch.testing.assert_close(dx, expected_dx, **close)
    for name, grad in wanted.items():
        assert found[name].dtype == grad.dtype == torch.float32
        scale = grad.abs().max()
        torch.testing.assert_close(found[name] / scale, grad / scale, **close)


@pytest.mark.parametrize(
    "name",
    [
        "act_gelu",
        "residual",
        "residual_gated",
        "gated_one_bias",
        "linear_conv1d",
        "linear_late_bias",
        "linear_T_matmul",
        "split_chunk",
    ],
)
def test_compute_in_the_dtype_of_autocast(name):
    torch.manual_seed(0)
    model, capture = ffns.TAKEN[name].make(), Capture()
    _autocast_check(model, capture, input_of())
    assert capture.linears == ffns.TAKEN[name].linears
    assert {request.dtype for request in capture.rewrites[0].operands} == {torch.bfloat16}


def test_drop_the_round_trip_of_t5_under_autocast():
    torch.manual_seed(0)
    model, capture = T5Ffn(), Capture()
    _autocast_check(model, capture, input_of())
    casts = [node for node in _nodes(capture) if node.target == "to"]
    assert [node.args[0].name for node in casts] == ["l_x_"], "only x is cast, to bfloat16"


def test_respect_an_fp32_projection_in_a_bf16_model():
    torch.manual_seed(0)
    model, capture = T5Ffn().bfloat16(), Capture()
    model.wo.float()
    torch._dynamo.reset()
    x = input_of(dtype=torch.bfloat16)
    y = torch.compile(model, backend=capture)(x)
    assert y.dtype == torch.float32
    assert [request.dtype for request in capture.rewrites[0].operands] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(y, masked_call(model, capture.masks, x), rtol=1e-5, atol=1e-2)


def _nodes(capture: Capture):
    return [node for rewrite in capture.rewrites for node in rewrite.graph_module.graph.nodes]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_need_no_transpose_without_gradients(mode):
    model, capture = ffns.TAKEN["product_torch"].make(), Capture()
    torch._dynamo.reset()
    with mode():
        torch.compile(model, backend=capture)(input_of())
    assert [len(request.placeholders) for request in capture.rewrites[0].operands] == [2, 2]
    assert not any(request.needs_transpose for request in capture.rewrites[0].operands)


def test_need_no_transpose_of_the_first_layer_of_data():
    model, capture = ffns.TAKEN["act_gelu"].make(), Capture()
    torch._dynamo.reset()
    torch.compile(model, backend=capture)(input_of().detach())
    assert [request.needs_transpose for request in capture.rewrites[0].operands] == [False, True]


def test_pack_a_shared_weight_once():
    torch.manual_seed(0)
    model, capture = Stack(ffns.TAKEN["product_torch"].make(), wrap=lambda layer, x: layer(layer(x))), Capture()
    check_masked(model, capture, input_of())
    assert capture.linears == 6
    assert len(capture.rewrites[0].operands) == 2


def test_take_frozen_weights():
    torch.manual_seed(0)
    model, capture = ffns.TAKEN["act_gelu"].make(), Capture()
    model.fc1.weight.requires_grad_(False)
    check_masked(model, capture, input_of())
    assert capture.linears == 2


def test_place_added_inputs_last_and_static():
    model, capture = Stack(*(ffns.TAKEN["product_torch"].make() for _ in range(2))), Capture()
    torch._dynamo.reset()
    torch.compile(model, backend=capture, dynamic=True)(input_of())
    (rewrite,) = capture.rewrites
    placeholders = rewrite.graph_module.graph.find_nodes(op="placeholder")
    added = [name for request in rewrite.operands for name in request.placeholders]
    assert [node.name for node in placeholders][-len(added) :] == added
    for node in placeholders:
        assert hasattr(node, "_dynamo_source")
        if node.name in added:
            assert node.meta["tensor_dict"] == {"_dynamo_static_input_type": "unguarded"}
            assert all(isinstance(size, int) for size in node.meta["example_value"].shape)


def test_say_where_each_node_comes_from():
    model, capture = Stack(ffns.Residual(ffns.TAKEN["product_torch"].make())), Capture()
    torch._dynamo.reset()
    torch.compile(model, backend=capture)(input_of())
    made = [node for node in _nodes(capture) if str(node.target).startswith("s24.")]
    assert {node.meta["s24"]["site"] for node in made} == {"Blocks.0.mlp"}
    assert {node.meta["s24"]["rule"] for node in made} == {"gated"}
    assert all("stack_trace" in node.meta and node.meta["example_value"] is not None for node in made)
    (site,) = capture.sites
    assert site.path == "Blocks.0.mlp"
    assert site.shape == "32 -> 64 -> 32"
    assert site.source.startswith("tests/ffns.py:")
    assert site.weights == tuple(f"Blocks.0.mlp.{n}_proj.weight" for n in ("gate", "up", "down"))


def test_leave_a_graph_without_layers_as_it_was():
    def attention(x):
        return F.scaled_dot_product_attention(x, x, x) * torch.sigmoid(x)

    capture = Capture()
    torch.compile(attention, backend=capture)(input_of())
    assert capture.sites == []
    assert capture.linears == 0


def test_name_parameters_as_the_model_does():
    model = ffns.TAKEN["split_chunk"].make()
    capture = Capture()
    torch._dynamo.reset()
    torch.compile(torch.compile(model, backend=capture), backend=capture)(input_of())
    assert [request.names for request in capture.rewrites[0].operands] == [("Wi.weight",), ("Wo.weight",)]


class Gpt(nn.Module):
    """Twelve pre-norm blocks with attention, an embedding and a tied head."""

    def __init__(self, layers: int = 12) -> None:
        super().__init__()
        self.wte = nn.Embedding(64, ffns.D)
        self.h = nn.ModuleList(GptBlock() for _ in range(layers))
        self.lm_head = nn.Linear(ffns.D, 64, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens)
        for block in self.h:
            x = block(x)
        return F.cross_entropy(self.lm_head(x).flatten(0, 1), tokens.flatten())


class GptBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(ffns.D), nn.LayerNorm(ffns.D)
        self.qkv, self.proj = nn.Linear(ffns.D, 3 * ffns.D), nn.Linear(ffns.D, ffns.D)
        self.mlp = ffns.Plain(ffns.gelu_new)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.qkv(self.ln_1(x)).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(a.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln_2(x))


def test_pass_over_twelve_layers_well_under_a_second():
    seconds = []

    def backend(gm, example_inputs):
        start = time.perf_counter()
        rewrite = passes.run(gm, Config(), passes.LinearOptions())
        seconds.append(time.perf_counter() - start)
        assert rewrite.count == 24
        return gm.forward

    torch._dynamo.reset()
    torch.compile(Gpt(), backend=backend)(torch.randint(64, (2, 8)))
    assert seconds[0] < 1.0


class Islands(nn.Module):
    """Autocast regions inside the traced code: a bf16 layer, then a disabled island."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = ffns.Gated(F.silu, bias=(True, True, True)), ffns.Plain(F.gelu)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = self.low(x)
            with torch.autocast("cpu", enabled=False):
                return self.high(y.float())


def test_follow_autocast_regions_inside_the_graph():
    torch.manual_seed(0)
    model, capture = Islands(), Capture()
    torch._dynamo.reset()
    x = input_of()
    y = torch.compile(model, backend=capture)(x)
    dtypes = [request.dtype for request in capture.rewrites[0].operands]
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2
    torch.testing.assert_close(y, masked_call(model, capture.masks, x), rtol=2**-6, atol=2**-6)


class PartlyFrozen(ffns.Plain):
    """The first layer runs under no_grad inside the graph."""

    def forward(self, x):
        with torch.no_grad():
            h = super().forward(x)
        return super().forward(h)


def test_follow_grad_mode_inside_the_graph():
    torch.manual_seed(0)
    model, capture = PartlyFrozen(F.gelu), Capture()
    torch._dynamo.reset()
    x = input_of()
    y = torch.compile(model, backend=capture)(x)
    torch.testing.assert_close(y, masked_call(model, capture.masks, x))
    linears = [n for n in _nodes(capture) if str(n.target) == "s24.linear.default"]
    assert [n.args[4] is not None for n in linears] == [False, False, False, True]
    assert len(capture.rewrites[0].operands) == 2


TENSOR_PARALLEL = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from tests import ffns
from tests.passes.harness import Capture
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
model, capture = ffns.Plain(torch.nn.functional.gelu), Capture()
parallelize_module(model, init_device_mesh("cpu", (1,)), {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})
torch.compile(model, backend=capture)(torch.randn(2, 8, 32, requires_grad=True)).sum().backward()
assert capture.linears == 0
print([(site.path, site.reason) for site in capture.sites])
"""


def test_refuse_weights_of_tensor_parallel_layers():
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", TENSOR_PARALLEL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "its weight is a DTensor" in done.stdout
