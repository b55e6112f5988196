"""What surrounds a layer: dynamic shapes, grad mode, several layers in one graph, names and sources, work."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from s24compile import passes
from s24compile.config import Config
from tests import ffns
from tests.masked import masked_call
from tests.passes.harness import Capture, check_masked, input_of
from tests.passes.stacks import Gpt, Stack


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
    made = [node for node in capture.nodes if str(node.target).startswith("s24.")]
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


def test_work_grows_with_the_number_of_layers_and_no_faster():
    calls = {}

    def backend(gm, example_inputs):
        count = 0

        def note(frame, event, argument):
            nonlocal count
            count += event == "call"

        sys.setprofile(note)
        rewrite = passes.run(gm, Config(), passes.LinearOptions())
        sys.setprofile(None)
        calls[rewrite.count] = count
        return gm.forward

    for layers in (4, 12):
        torch._dynamo.reset()
        torch.compile(Gpt(layers), backend=backend)(torch.randint(64, (2, 8)))
    assert calls[24] < 3.5 * calls[8]


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
    linears = [n for n in capture.nodes if str(n.target) == "s24.linear.default"]
    assert [n.args[4] is not None for n in linears] == [False, False, False, True]
    assert len(capture.rewrites[0].operands) == 2


TENSOR_PARALLEL = """
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from tests import ffns
from tests.ffn_spellings import gelu_new
from tests.passes.harness import Capture
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
model, capture = ffns.Plain(torch.nn.functional.gelu), Capture()
parallelize_module(model, init_device_mesh("cpu", (1,)), {"fc1": ColwiseParallel(), "fc2": RowwiseParallel()})
torch.compile(model, backend=capture)(torch.randn(2, 8, 32, requires_grad=True)).sum().backward()
assert capture.linears == 0
print([(site.path, site.reason) for site in capture.sites])
"""


def test_refuse_weights_of_tensor_parallel_layers():
    done = subprocess.run([sys.executable, "-c", TENSOR_PARALLEL], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "its weight is a DTensor" in done.stdout
