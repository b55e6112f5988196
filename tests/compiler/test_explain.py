"""`explain()`: rows, reasons, coverage, and a model that it leaves as it was."""

from __future__ import annotations

import gc
import inspect
import json
import random
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import s24compile
from s24compile import errors
from s24compile.demo.model import GPT, GPTConfig
from s24compile.report import Report, Site


@pytest.fixture
def gpt() -> GPT:
    return GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(256, (2, 16))


def test_list_every_layer_with_path_family_shape_and_source(gpt: GPT, tokens: Tensor) -> None:
    report = s24compile.explain(gpt, tokens)
    assert [site.path for site in report.sites] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert all(site.status == "rewritten" and site.linears == 2 for site in report.sites)
    assert all("32" in site.shape and "128" in site.shape for site in report.sites)
    assert all("demo/model.py:" in site.source for site in report.sites)
    assert report.sites[0].weights == ("blocks.0.mlp.c_fc.weight", "blocks.0.mlp.c_proj.weight")
    table = str(report)
    assert "blocks.1.mlp" in table
    assert "2 of 2 layers" in table
    assert "cpu" in table
    assert "s24::mm by reference" in table
    assert "they save Z 32.8 kB, H 32.8 kB for the backward; memory='save' saves 32.8 kB less" in table
    assert json.loads(report.to_json())["sites"][1]["saved_bytes"] == [["Z", 16384], ["H", 16384]]
    assert json.loads(report.to_json())["sites"][0]["path"] == "blocks.0.mlp"


def test_leave_state_randomness_and_buffers_alone(tokens: Tensor) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)
            self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            scale = random.random() + float(numpy.random.rand())
            return self.fc2(torch.relu(self.fc1(nn.functional.dropout(self.norm(x * scale)))))

    net = Net()
    x = torch.randn(4, 8)
    before, rng = net.norm.running_mean.clone(), torch.get_rng_state()
    others = random.getstate(), numpy.random.get_state()
    report = s24compile.explain(net, x)
    assert len(report.rewritten) == 1
    assert torch.equal(before, net.norm.running_mean)
    assert torch.equal(rng, torch.get_rng_state())
    assert random.getstate() == others[0]
    numpy.testing.assert_equal(numpy.random.get_state(), others[1])
    assert not s24compile.sparse_weights(net)


@pytest.mark.parametrize("how", ["plain", "compiled", "in place", "by regions"])
def test_let_an_explained_model_go(how: str) -> None:
    options = {"inner": "eager"}

    def explained() -> weakref.ref[nn.Module]:
        model: Any = nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Tanh())
        if how == "in place":
            model.compile(backend="s24", options=options)
        if how == "by regions":
            model[0].compile(backend="s24", options=options)
        given = torch.compile(model, backend="s24", options=options) if how == "compiled" else model
        s24compile.explain(given, torch.randn(4, 8))
        return weakref.ref(model)

    models = [explained() for _ in range(3)]
    gc.collect()
    assert [model() for model in models] == [None] * 3


def test_give_a_sentence_for_each_refusal() -> None:
    net = nn.Sequential(nn.Linear(8, 14), nn.GELU(), nn.Linear(14, 8))
    report = s24compile.explain(net, torch.randn(2, 8))
    (site,) = report.sites
    assert site.status == "refused"
    assert "14" in site.reason
    assert "multiple of 4" in site.reason
    assert site.reason in str(report)


def test_explain_a_compiled_model_with_its_own_options(gpt: GPT, tokens: Tensor) -> None:
    fast = torch.compile(gpt, backend="s24", options={"exclude": r"blocks\.1", "inner": "eager"})
    report = s24compile.explain(fast, tokens)
    assert [(s.path, s.status) for s in report.sites] == [("blocks.0.mlp", "rewritten"), ("blocks.1.mlp", "refused")]
    assert "exclude" in report.sites[1].reason
    fast(tokens)
    assert len(s24compile.sparse_weights(fast)) == 2
    again = s24compile.explain(fast, tokens)
    assert [s.status for s in again.sites] == ["rewritten", "refused"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, ""),
        ({"dense_after": 0}, "trains dense always: dense_after=0"),
        ({"dense_until": 5}, "trains dense for the first 5 optimizer steps"),
        ({"total_steps": 60}, "trains dense after 50 optimizer steps"),
        (
            {"recipe": "fst-exact", "total_steps": 60},
            "trains dense for the first 10 optimizer steps and after 50 optimizer steps",
        ),
    ],
)
def test_say_when_a_sparse_layer_trains_dense(options: dict[str, Any], said: str) -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    compiled = torch.compile(net, backend="s24", options={"inner": "eager", **options})
    (site,) = s24compile.explain(compiled, torch.randn(2, 16)).sites
    assert (site.status, site.reason) == ("rewritten", said)
    decorated = s24compile.sparse_ffn(net, **options)
    assert said in s24compile.explain(nn.Sequential(decorated), torch.randn(2, 16)).sites[0].reason


def test_explain_a_module_compiled_in_place(gpt: GPT, tokens: Tensor) -> None:
    gpt.compile(backend="s24", options={"include": "blocks.0", "inner": "eager"})
    gpt(tokens)
    assert len(s24compile.explain(gpt, tokens).rewritten) == 1


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)),
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
    ],
    ids=["Sequential", "TransformerEncoderLayer"],
)
def test_say_that_torchs_own_modules_compiled_in_place_stay_dense(net: nn.Module) -> None:
    """Dynamo skips their forwards, with any backend: the backend is never called, and only this can tell."""
    net.compile(backend="s24", options={"inner": "eager"})
    x = torch.randn(2, 4, 16)
    report = s24compile.explain(net, x)
    net(x)
    assert not s24compile.sparse_weights(net)
    assert not report.sites
    assert len(report.unseen) >= 2
    assert len(s24compile.explain(torch.compile(net.train(), backend="s24"), x).rewritten) == 1, "the way round it"


def compile_each(gpt: GPT, how: str) -> None:
    """Regional compilation: the blocks one by one, the odd ones with other options."""
    for index, block in enumerate(gpt.blocks):
        options = {"inner": "eager", "exclude": "c_fc" if index % 2 else ()}
        if how == "in place":
            block.compile(backend="s24", options=options)
        else:
            gpt.blocks[index] = torch.compile(block, backend="s24", options=options)


@pytest.mark.parametrize("how", ["in place", "wrapped"])
def test_explain_modules_compiled_one_by_one_with_the_options_of_each(how: str, tokens: Tensor) -> None:
    gpt = GPT(GPTConfig(n_layer=4, n_head=2, n_embd=32, block_size=16))
    compile_each(gpt, how)
    report = s24compile.explain(gpt, tokens)
    assert [(site.path, site.linears) for site in report.sites] == [(f"blocks.{i}.mlp", 2 - i % 2) for i in range(4)]
    assert report.sites[3].weights[0] == "blocks.3.mlp.c_fc.weight"
    assert report.unseen == ("lm_head.weight",), "it is in no module that is compiled"
    assert not s24compile.sparse_weights(gpt), "explaining trains nothing"
    gpt(tokens)
    assert set(s24compile.sparse_weights(gpt)) == {
        f"blocks.{i}.mlp.{name}.weight"
        for i in range(4)
        for name in ("c_fc", "c_proj")
        if name == "c_proj" or not i % 2
    }
    assert s24compile.explain(gpt, tokens).sites == report.sites, "nor does it leave them uncompiled"


HALF = {"inner": "eager", "exclude": "down"}
"""Options that only those who know them report."""


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def ffn(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(x)


def compiled_forward() -> nn.Module:
    model = Layer()
    model.forward = torch.compile(model.forward, backend="s24", options=HALF)
    return model


def compiled_method() -> nn.Module:
    model = Layer()
    model.ffn = torch.compile(model.ffn, backend="s24", options=HALF)
    return model


class DecoratedForward(Layer):
    @torch.compile(backend="s24", options=HALF)
    def forward(self, x: Tensor) -> Tensor:
        return self.ffn(x)


class DecoratedMethod(Layer):
    @torch.compile(backend="s24", options=HALF)
    def ffn(self, x: Tensor) -> Tensor:
        return super().ffn(x)


@torch.compile(backend="s24", options=HALF)
def layer_function(x: Tensor, layer: Layer) -> Tensor:
    return layer.ffn(x)


class CallsFunction(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return layer_function(x, self)


def compiled_inside() -> nn.Module:
    model = nn.Sequential(Layer(), nn.Tanh(), Layer())
    model[2].forward = torch.compile(model[2].forward, backend="s24", options=HALF)
    return model


WAYS: dict[str, Callable[[], Any]] = {
    "torch.compile(model)": lambda: torch.compile(Layer(), backend="s24", options=HALF),
    "m.forward": compiled_forward,
    "m.method": compiled_method,
    "@torch.compile on forward": DecoratedForward,
    "@torch.compile on a method": DecoratedMethod,
    "a function": CallsFunction,
    "a part": compiled_inside,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [True, False])
def test_tell_the_truth_of_every_way_to_compile(way: str, first: bool) -> None:
    model, x = WAYS[way](), torch.randn(8, 16)
    if not first:
        model(x).sum().backward()
    report = s24compile.explain(model, x)
    if first:
        assert not s24compile.sparse_weights(model), "explaining trains nothing"
    graphs = counters["stats"]["unique_graphs"]
    y = model(x)
    if not first:
        assert counters["stats"]["unique_graphs"] == graphs, "explaining takes no compilation away"
    true = s24compile.sparse_weights(model)
    (site,) = report.sites
    assert report.linears == len(true) == 1
    assert set(true) < set(site.weights)
    assert report.graphs == 1
    assert set(report.unseen) == ({"0.up.weight", "0.down.weight"} if way == "a part" else set())
    again = s24compile.explain(model, x)
    assert again.sites == report.sites
    torch.testing.assert_close(model(x), y)


def test_see_nothing_where_torch_compile_gave_up() -> None:
    model, x = Layer(), torch.randn(8, 16)
    fast = torch.compile(model, backend="s24", options=HALF)
    with torch.compiler.set_stance("force_eager"):
        report = s24compile.explain(fast, x)
    assert (report.sites, report.unseen) == ((), ("up.weight", "down.weight"))


def test_name_the_linears_as_include_and_exclude_know_them() -> None:
    model, x = nn.Sequential(Layer(), nn.Tanh(), Layer()), torch.randn(8, 16)
    report = s24compile.explain(model, x)
    table = str(report)
    for i, site in zip((0, 2), report.sites, strict=True):
        assert site.linears_at == (f"{i}.up", f"{i}.down")
        assert f"{i}.up, {i}.down" in table
    for path in [path for site in report.sites for path in site.linears_at]:
        fast = torch.compile(model, backend="s24", options={"inner": "eager", "exclude": f"^{path}$"})
        assert s24compile.explain(fast, x).linears == 3, path


def test_print_the_notes_of_a_row_behind_its_reason() -> None:
    site = Site("0", "gelu", "8 -> 16 -> 8", "rewritten", "exact gradients", notes=("in fp8", "two scales"))
    assert site.sentence == "0: gelu 8 -> 16 -> 8 rewritten: exact gradients; in fp8; two scales"
    report = Report((site,), 1, "cpu")
    assert "exact gradients; in fp8; two scales" in str(report)
    assert json.loads(report.to_json())["sites"][0]["notes"] == ["in fp8", "two scales"]


def test_name_matrices_of_other_modules_that_no_graph_holds() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 16)
            self.layer = Layer()
            self.weight, self.scale = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.ones(16))

        @torch.compiler.disable
        def outside(self, x: Tensor) -> Tensor:
            return self.embed(x.argmax(-1) % 8) @ self.weight * self.scale

        def forward(self, x: Tensor) -> Tensor:
            return self.outside(self.layer(x))

    assert s24compile.explain(Own(), torch.randn(4, 16)).unseen == ("weight",)


def test_explain_by_the_outermost_compile(gpt: GPT, tokens: Tensor) -> None:
    compile_each(gpt, "in place")  # Dynamo traces through, with the options of the whole
    whole = torch.compile(gpt, backend="s24", options={"inner": "eager", "exclude": r"blocks\.0"})
    report = s24compile.explain(whole, tokens)
    assert [(site.path, site.linears) for site in report.sites] == [("blocks.0.mlp", 0), ("blocks.1.mlp", 2)]


def test_explain_a_decorated_module_among_compiled_ones(gpt: GPT, tokens: Tensor) -> None:
    gpt.blocks[0].compile(backend="s24", options={"inner": "eager"})
    s24compile.sparse_ffn(gpt.blocks[1].mlp, inner="eager", exclude="c_fc")
    report = s24compile.explain(gpt, tokens)
    assert [site.path for site in report.sites] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert not s24compile.sparse_weights(gpt)
    assert "blocks.1.attn.c_attn.weight" in report.unseen


def test_name_the_weights_that_no_graph_held() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ffn = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
            self.hidden = nn.Linear(8, 8)

        @torch.compiler.disable
        def outside(self, x: Tensor) -> Tensor:
            return self.hidden(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.outside(self.ffn(x))

    report = s24compile.explain(Broken(), torch.randn(2, 8))
    assert report.unseen == ("hidden.weight",)
    assert "hidden.weight" in str(report)
    assert len(report.rewritten) == 1


class Broken(nn.Module):
    """A layer with a graph break after its first projection, or after its activation."""

    def __init__(self, gated: bool = False, early: bool = False) -> None:
        super().__init__()
        self.gated, self.early = gated, early
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.gate(x)
        if self.early:
            torch._dynamo.graph_break()
        h = F.silu(h) * self.up(x) if self.gated else F.silu(h)
        if not self.early:
            torch._dynamo.graph_break()
        return self.down(F.dropout(h, 0.1, self.training))


@pytest.mark.parametrize(
    ("gated", "early", "family", "weights"),
    [
        (False, False, "silu", ("gate.weight",)),
        (False, True, "silu", ("down.weight",)),
        (True, False, "swiglu", ("gate.weight", "up.weight")),
        (True, True, "swiglu", ("up.weight", "down.weight")),
    ],
)
def test_list_a_layer_that_a_graph_break_cuts(gated: bool, early: bool, family: str, weights: tuple[str, ...]) -> None:
    (site,) = s24compile.explain(Broken(gated, early), torch.randn(2, 8)).sites
    assert (site.family, site.weights, site.status) == (family, weights, "refused")
    assert "is in another graph: a graph break (" in site.reason
    assert "test_explain.py:" in site.reason


def test_list_a_layer_that_a_hook_cuts() -> None:
    class Hooked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.up.register_forward_hook(torch.compiler.disable(lambda module, args, out: None))

        def forward(self, x: Tensor) -> Tensor:
            return self.down(F.gelu(self.up(x)))

    (site,) = s24compile.explain(Hooked(), torch.randn(2, 8)).sites
    assert (site.family, site.status) == ("gelu", "refused")
    assert "is in another graph" in site.reason
    assert "is in another graph" in site.reason


def test_list_no_half_where_a_function_ends_or_begins_with_an_activation() -> None:
    ends, begins = nn.Sequential(nn.Linear(8, 16), nn.GELU()), nn.Sequential(nn.GELU(), nn.Linear(8, 16))
    for model in (ends, begins):
        assert not s24compile.explain(model, torch.randn(2, 8)).sites


def test_list_no_half_of_attention_that_a_graph_break_cuts() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.q(x), self.k(x), self.v(x)
            torch._dynamo.graph_break()
            y = F.scaled_dot_product_attention(q, k, v)
            torch._dynamo.graph_break()
            return self.o(y)

    assert not s24compile.explain(Attention(), torch.randn(2, 4, 8)).sites


def test_know_parametrised_weights_by_what_they_are_computed_from() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.outside = nn.Linear(8, 8), nn.Linear(8, 8)
            for linear in (self.inside, self.outside):
                nn.utils.parametrizations.weight_norm(linear)

        @torch.compiler.disable
        def late(self, x: Tensor) -> Tensor:
            return self.outside(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.inside(x))

    assert s24compile.explain(Net(), torch.randn(2, 8)).unseen == ("outside.weight",)


def test_refuse_what_is_no_module() -> None:
    with pytest.raises(errors.ModelError, match=r"torch\.nn\.Module"):
        s24compile.explain(torch.relu, torch.randn(2))


@pytest.mark.skipif("isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="torch before 2.13")
def test_leave_dynamo_its_compilations_for_training() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(x)

    net = Net()
    for rows in range(1, 2 * torch._dynamo.config.recompile_limit):
        report = s24compile.explain(net, torch.randn(rows, 16))
        assert (len(report.rewritten), report.unseen) == (1, ())
    torch.compile(net, backend="s24", options={"inner": "eager"})(torch.randn(4, 16)).sum().backward()
    assert len(s24compile.sparse_weights(net)) == 2
