"""Which layers recipe="activation" takes, in which spelling, and what it says of the others."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from s24compile import passes
from s24compile.config import Config
from s24compile.passes import hidden
from tests import ffns
from tests.ffn_spellings import ACTIVATIONS, LINEARS
from tests.passes.harness import CHECKED, input_of
from tests.passes.harness import Capture as WeightCapture
from tests.passes.stacks import Stack, checkpointed, nested
from tests.pruned import pruned_call

RELU2 = lambda x: F.relu(x).square()  # noqa: E731
EXACT = passes.LinearOptions(dw="dense")


@dataclasses.dataclass(eq=False)
class Capture:
    """A backend that runs the passes alone, and keeps what the graphs count."""

    config: Config = dataclasses.field(default_factory=lambda: Config(recipe="activation"))
    options: passes.LinearOptions = EXACT
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)
    rewrites: list[passes.Rewrite] = dataclasses.field(default_factory=list)
    counts: list[torch.Tensor] = dataclasses.field(default_factory=list)

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Any]):
        rewrite = passes.run(gm, self.config, self.options, passes=CHECKED, **self.keywords)
        self.rewrites.append(rewrite)
        further = sum(layer.counted for layer in rewrite.layers)

        def run(*args: Any) -> Any:
            results = rewrite.graph_module(*args)
            own = len(results) - further
            self.counts[:] = results[own:]
            return results[:own]

        return run

    @property
    def sites(self):
        return [site for rewrite in self.rewrites for site in rewrite.sites]

    @property
    def layers(self):
        return [layer for rewrite in self.rewrites for layer in rewrite.layers]


def gradients_of(y, x, model):
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])


def check_pruned(model: nn.Module, capture: Capture, x: torch.Tensor, reference: nn.Module | None = None, **options):
    """Output and all gradients are those of dense arithmetic on pruned hidden states."""
    torch._dynamo.reset()
    torch.manual_seed(1)
    y = torch.compile(model, backend=capture, **options)(x)
    found = gradients_of(y, x, model)
    downs = [layer.names[0] for layer in capture.layers]
    torch.manual_seed(1)
    same = reference or model
    names = {id(p): name for name, p in same.named_parameters()}
    expected = pruned_call(same, [names[id(dict(model.named_parameters())[name])] for name in downs], x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found, gradients_of(expected, x, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())
    assert len(capture.counts) == len(downs)


@pytest.mark.parametrize("name", [name for name, (family, _) in ACTIVATIONS.items() if family in hidden.SPARSE])
def test_take_every_spelling_of_the_activation(name):
    family, act = ACTIVATIONS[name]
    model, capture = ffns.Plain(act), Capture()
    check_pruned(model, capture, input_of())
    (site,) = capture.sites
    assert (site.status, site.family, site.linears) == ("rewritten", family, 2)


@pytest.mark.parametrize("name", LINEARS)
def test_take_every_spelling_of_the_projections(name):
    formula, turned = LINEARS[name]
    model = ffns.Plain(RELU2, lambda i, o: ffns.Spelled(formula, i, o, turned))
    capture = Capture()
    check_pruned(model, capture, input_of())
    assert capture.layers[0].weight_layout == ("in_out" if turned else "out_in")


def test_take_conv1d_and_layers_without_bias():
    for linear in (ffns.Conv1D, lambda i, o: nn.Linear(i, o, bias=False)):
        capture = Capture()
        check_pruned(ffns.Plain(F.relu, linear), capture, input_of())
        assert capture.rewrites[0].count == 2


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("act", [F.relu, RELU2])
def test_draw_what_the_dropout_drew(act, p):
    capture = Capture()
    check_pruned(ffns.Plain(act, drop=p), capture, input_of())
    assert passes.format_graph(capture.rewrites[0].graph_module).count("dropout(") == 1


def test_leave_out_a_dropout_that_drops_nothing():
    for training, p in ((False, 0.5), (True, 0.0)):
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 32)).train(training)
        capture = Capture()
        check_pruned(model, capture, input_of())
        assert "dropout" not in passes.format_graph(capture.rewrites[0].graph_module)


class Scaled(nn.Module):
    """What else may stand between the projections: a scale, reshapes, a second cast."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        h = F.relu(self.fc1(x)) / 4 * 2.0
        return self.fc2(h.double().float().view(-1, 64)).view(x.shape)


def test_look_through_scales_casts_and_reshapes():
    check_pruned(Scaled(), Capture(), input_of())


@pytest.mark.parametrize("wrap", [checkpointed, nested])
def test_enter_checkpointed_bodies_and_hand_up_their_counts(wrap):
    model, capture = Stack(*(ffns.Plain(RELU2) for _ in range(2)), wrap=wrap), Capture()
    check_pruned(model, capture, input_of(), reference=Stack(*model.Blocks))
    assert [site.path for site in capture.sites] == ["Blocks.0", "Blocks.1"]
    assert all(counts[..., 0].sum() == 16 * 64 for counts in capture.counts)


class Region(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ffn = ffns.Plain(RELU2)

    @torch.compiler.nested_compile_region
    def forward(self, x):
        return self.ffn(x)


def test_count_each_call_of_a_shared_body():
    model, capture = Stack(*(Region() for _ in range(3))), Capture()
    x = input_of()
    torch._dynamo.reset()
    y = torch.compile(model, backend=capture)(x)
    torch.testing.assert_close(y, pruned_call(model, [f"Blocks.{i}.ffn.fc2.weight" for i in range(3)], x))
    assert [layer.names[0] for layer in capture.layers] == [f"Blocks.{i}.ffn.fc2.weight" for i in range(3)]
    assert len({tuple(counts.flatten().tolist()) for counts in capture.counts}) == 3


def test_take_a_deep_mlp_whose_layers_share_projections():
    """The last projection of one layer is the first of the next."""
    sizes = (32, 64, 48, 32)
    linears = [nn.Linear(i, o) for i, o in itertools.pairwise(sizes)]
    model = nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])
    capture = Capture()
    check_pruned(model, capture, input_of())
    assert [len(layer.names) for layer in capture.layers] == [2, 1]
    assert capture.rewrites[0].count == 3


def test_share_a_weight_with_whatever_else_uses_it():
    class Tied(ffns.Plain):
        def forward(self, x):
            return super().forward(x) + F.linear(x, self.fc2.weight.t()).sum()

    capture = Capture()
    torch._dynamo.reset()
    torch.compile(Tied(RELU2), backend=capture)(input_of())
    assert capture.sites[0].status == "rewritten"


@pytest.mark.parametrize(("options", "linears"), [({"targets": "down"}, 1), ({"exclude": "fc1"}, 1)])
def test_leave_the_first_projection_dense_where_asked(options, linears):
    for drop in (0.0, 0.2):
        capture = Capture(Config(recipe="activation", **options))
        check_pruned(ffns.Plain(RELU2, drop=drop), capture, input_of())
        assert capture.rewrites[0].count == linears
        assert capture.layers[0].names == ("fc2.weight",)


class Between(nn.Module):
    """Something that stands between the projections."""

    def __init__(self, before=lambda h: h, after=lambda h: h, width=64) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(32, width), nn.Linear(width, 32)
        self.before, self.after = before, after

    def forward(self, x):
        return self.fc2(self.after(F.relu(self.before(self.fc1(x)))))


class Written(ffns.Plain):
    def forward(self, x):
        y = self.fc1(x)
        x.add_(1)
        return self.fc2(F.relu(y)) + x


class NoGrad(ffns.Plain):
    def forward(self, x):
        with torch.no_grad():
            h = F.relu(self.fc1(x))
        return self.fc2(h)


REFUSED = {
    "gelu": (lambda: ffns.Plain(F.gelu), "its hidden state is not sparse"),
    "silu": (lambda: ffns.Plain(F.silu), "its hidden state is not sparse"),
    "quick_gelu": (lambda: ffns.Plain(ACTIVATIONS["quick_gelu"][1]), "its hidden state is not sparse"),
    "swiglu": (lambda: ffns.Gated(F.silu), "not sparse: recipe='activation' takes layers whose activation is relu"),
    "reglu": (lambda: ffns.Gated(F.relu), "and this one's is a gate by relu"),
    "leaky": (lambda: ffns.Plain(F.leaky_relu), "its activation leaky_relu is none of"),
    "width": (lambda: Between(width=72), "its hidden width 72 is no multiple of 16"),
    "scale before": (lambda: Between(lambda h: h * 2), "`mul` stands between its projections"),
    "negative scale": (lambda: Between(after=lambda h: h * -2), "its hidden state is multiplied by -2"),
    "dropout before": (lambda: Between(lambda h: F.dropout(h, 0.1)), "`dropout` stands between its projections"),
    "two dropouts": (
        lambda: Between(after=lambda h: F.dropout(F.dropout(h, 0.1), 0.1)),
        "a second dropout stands behind its activation",
    ),
    "written": (lambda: Written(F.relu), "something writes to memory that they read"),
    "no_grad": (lambda: NoGrad(F.relu), "changes the grad mode"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuse_in_words(case):
    make, reason = REFUSED[case]
    torch.manual_seed(0)
    model, capture, x = make(), Capture(), input_of().detach()
    torch._dynamo.reset()
    torch.manual_seed(1)
    found = torch.compile(model, backend=capture)(x.clone())
    torch.manual_seed(1)
    torch.testing.assert_close(found, model(x.clone()))
    (site,) = capture.sites
    assert site.status == "refused"
    assert reason in site.reason, site.reason
    assert not capture.layers


def test_refuse_every_linear_that_is_no_layer_s():
    model = nn.Sequential(nn.Linear(32, 32), ffns.Plain(RELU2))
    capture = Capture(Config(recipe="activation", targets="linear"))
    check_pruned(model, capture, input_of())
    assert {site.family: site.status for site in capture.sites} == {"linear": "refused", "relu2": "rewritten"}


@pytest.mark.parametrize("options", [{"exclude": "fc2"}, {"include": "fc1"}])
def test_give_up_a_layer_whose_last_projection_stays_dense(options):
    capture = Capture(Config(recipe="activation", **options))
    torch._dynamo.reset()
    torch.compile(ffns.Plain(RELU2), backend=capture)(input_of())
    (site,) = capture.sites
    assert site.status == "refused"
    assert site.reason.startswith("its last projection: its path 'fc2' matches")


def test_refuse_a_format_that_nobody_can_read():
    capture = Capture(options=dataclasses.replace(EXACT, format="cusparselt"))
    torch._dynamo.reset()
    torch.compile(ffns.Plain(RELU2), backend=capture)(input_of())
    assert "cusparselt" in capture.sites[0].reason


@pytest.mark.parametrize("act", [F.relu, RELU2])
def test_name_the_recipe_where_another_one_meets_such_a_layer(act):
    capture = WeightCapture()
    torch._dynamo.reset()
    torch.compile(ffns.Plain(act), backend=capture)(input_of())
    assert "recipe='activation'" in capture.sites[0].reason
    assert capture.sites[0].status == "rewritten"


@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_take_fuel_and_phases_as_other_recipes_do(drop, monkeypatch):
    model = Stack(ffns.Plain(RELU2, drop=drop), ffns.Plain(F.relu))
    placeholders = {"l_self_modules_blocks_modules_0_modules_fc2_parameters_weight_"}
    for keywords, words in (({}, "out of fuel"), ({"dense": placeholders}, "dense phase")):
        monkeypatch.setenv("S24_FUEL", "1" if not keywords else "9")
        capture = Capture(keywords={name: frozenset(value) for name, value in keywords.items()})
        torch._dynamo.reset()
        torch.compile(model, backend=capture)(input_of())
        statuses = [site.status for site in capture.sites]
        assert sorted(statuses) == ["refused", "rewritten"], [site.sentence for site in capture.sites]
        assert any(words in site.reason for site in capture.sites)


def test_compute_in_the_dtype_of_autocast():
    model, capture, x = ffns.Plain(RELU2, drop=0.1), Capture(), input_of()
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(1)
        y = torch.compile(model, backend=capture)(x)
        torch.manual_seed(1)
        expected = pruned_call(model, ["fc2.weight"], x)
    torch.testing.assert_close(y, expected, rtol=2**-6, atol=2**-6)
    assert y.dtype == torch.bfloat16
    found = gradients_of(y, x, model)
    assert {g.dtype for g in found} == {torch.float32}


def test_say_what_is_kept_for_the_backward():
    capture = Capture()
    torch._dynamo.reset()
    torch.compile(ffns.Plain(RELU2), backend=capture)(input_of(8, 8))
    assert capture.sites[0].saved_bytes == (("P", 64 * 32 * 4 + 64 * 64 // 8),)
