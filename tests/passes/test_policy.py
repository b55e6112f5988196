"""What the policy refuses, each with its sentence, and what it takes nevertheless."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.traceback import annotate

from s24compile import errors, passes
from s24compile.config import Config
from s24compile.graphs.marks import KEY
from tests import ffns
from tests.ffn_lookalikes import REFUSED
from tests.passes.harness import Capture, check_masked, input_of
from tests.passes.stacks import Gpt, Stack


def sites_of(model: nn.Module, x: torch.Tensor | None = None, config: Config | None = None, **keywords):
    capture = Capture(config=config or Config(), keywords=keywords)
    torch._dynamo.reset()
    torch.compile(model, backend=capture)(input_of() if x is None else x)
    return capture.sites, capture


class Sized(nn.Module):
    """linear - gelu - linear of any widths."""

    def __init__(self, d: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d, hidden), nn.Linear(hidden, out)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


def test_refuse_widths_that_no_format_takes():
    (site,), capture = sites_of(Sized(32, 40, 32))
    assert site.status == "refused"
    assert "its output features 40" in site.reason or "its 40 output features are no multiple of 16" in site.reason
    assert capture.linears == 0


def test_take_the_linear_that_fits():
    torch.manual_seed(0)
    model, capture = Sized(32, 64, 10), Capture()
    check_masked(model, capture, input_of())
    (site,) = capture.sites
    assert site.status == "rewritten"
    assert site.linears == 1
    assert site.reason == "fc2 stays dense: its 10 output features are no multiple of 16, which the 2:4 format needs"


def test_take_gate_and_up_one_by_one_if_one_of_them_must_stay():
    torch.manual_seed(0)
    model, capture = ffns.Gated(F.silu), Capture(config=Config(exclude=("gate",)))
    check_masked(model, capture, input_of())
    (site,) = capture.sites
    assert site.linears == 2
    assert site.reason == "gate_proj stays dense: its path 'gate_proj' matches exclude='gate'"


@pytest.mark.parametrize(
    ("config", "taken"),
    [
        (Config(include=(r"Blocks\.1",)), ["Blocks.1"]),
        (Config(exclude=(r"Blocks\.1",)), ["Blocks.0"]),
        (Config(include=(r"fc1",)), ["Blocks.0", "Blocks.1"]),
        (Config(include=(r"Blocks",), exclude=(r"0",)), ["Blocks.1"]),
    ],
)
def test_follow_regexes_on_module_paths(config: Config, taken: list[str]) -> None:
    sites, _ = sites_of(Stack(Sized(32, 64, 32), Sized(32, 64, 32)), config=config)
    assert [site.path for site in sites if site.status == "rewritten"] == taken
    assert all("include=" in site.reason or "exclude=" in site.reason for site in sites if site.status == "refused")


def test_leave_dense_weights_alone():
    model = Sized(32, 64, 32)
    names = frozenset({"l_self_modules_fc1_parameters_weight_", "l_self_modules_fc2_parameters_weight_"})
    (site,), capture = sites_of(model, dense=names)
    assert (site.status, site.reason, capture.linears) == ("refused", "it is in its dense phase", 0)


def test_keep_the_user_s_own_spelling_where_nothing_is_taken():
    _, capture = sites_of(ffns.TAKEN["act_gelu_new"].make(), config=Config(exclude=(".*",)))
    assert "tanh" in capture.graph()


def test_ask_whether_a_site_pays():
    seen = []

    def profitable(layer):
        seen.append((layer.width, layer.hidden, layer.gated, layer.dtype))
        assert layer.tokens == input_of().shape[:-1].numel()
        return "too few tokens"

    (site,), _ = sites_of(Sized(32, 64, 32), profitable=profitable)
    assert (site.status, site.reason) == ("refused", "too few tokens")
    assert seen == [(32, 64, False, torch.float32)]


def test_run_out_of_fuel(monkeypatch):
    monkeypatch.setenv("S24_FUEL", "1")
    sites, capture = sites_of(Stack(Sized(32, 64, 32), Sized(32, 64, 32)))
    assert [site.status for site in sites] == ["rewritten", "refused"]
    assert sites[1].reason.startswith("out of fuel")
    assert capture.linears == 2


def test_say_what_fuel_is():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("S24_FUEL", "many")
        with pytest.raises(errors.OptionError, match="S24_FUEL"):
            passes.run(torch.fx.symbolic_trace(nn.Identity()), Config(), passes.LinearOptions())


class Tied(Sized):
    """fc1's weight has a second use."""

    def __init__(self) -> None:
        super().__init__(32, 64, 32)

    def forward(self, x):
        return super().forward(x) + self.fc1.weight.square().sum()


def test_refuse_a_weight_with_another_use_and_take_the_rest():
    torch.manual_seed(0)
    model, capture = Tied(), Capture()
    check_masked(model, capture, input_of())
    (site,) = capture.sites
    assert site.linears == 1
    assert site.reason.startswith(
        "fc1 stays dense: its weight fc1.weight has another use, `square` (tests/passes/test_policy.py:"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_take_every_float_dtype_on_cpu(dtype):
    (site,), capture = sites_of(Sized(32, 64, 32).to(dtype), input_of(dtype=dtype))
    assert site.linears == 2
    assert {request.dtype for request in capture.rewrites[0].operands} == {dtype}


def test_refuse_complex_weights():
    (site,), _ = sites_of(
        ffns.Plain(lambda h: h * torch.sigmoid(h)).to(torch.complex64), input_of().to(torch.complex64)
    )
    assert "dtype complex64 is not supported" in site.reason


DOWN = "targets='down' takes the down projections alone"


@pytest.mark.parametrize("make", [ffns.TAKEN["act_gelu_new"].make, lambda: ffns.Gated(F.silu)], ids=["plain", "gated"])
def test_take_the_down_projections_alone(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, capture = make(), Capture(config=Config(targets="down"))
    check_masked(model, capture, input_of())
    (site,) = capture.sites
    assert (site.status, site.linears) == ("rewritten", 1)
    *others, down = (name.removesuffix(".weight") for name in site.weights)
    assert site.reason == f"{' and '.join(others)} {'stay' if len(others) > 1 else 'stays'} dense: {DOWN}"
    (request,) = capture.rewrites[0].operands
    assert request.names == (f"{down}.weight",)


def test_take_the_down_projections_alone_of_decorated_modules() -> None:
    label = '{"targets": "down"}'
    sites, _ = sites_of(Stack(Marked(label), Marked("{}")))
    assert [site.linears for site in sites] == [1, 2]
    sites, _ = sites_of(MarkedSingle(label))
    assert [site.linears for site in sites if site.family == "linear"] == [], "it is in no feed-forward layer"


class FunctionalMlp(nn.Module):
    """Weights that arrive as arguments."""

    def forward(self, x, w1, w2):
        return F.linear(F.gelu(F.linear(x, w1)), w2)


def test_refuse_weights_that_are_no_parameters():
    capture = Capture()
    torch._dynamo.reset()
    torch.compile(FunctionalMlp(), backend=capture)(input_of(), torch.randn(64, 32), torch.randn(32, 64))
    assert "not an nn.Parameter" in capture.sites[0].reason


def test_take_every_linear_but_the_tied_head():
    sites, capture = sites_of(Gpt(2), torch.randint(64, (2, 8)), Config(targets="linear"))
    assert capture.linears == 2 * 4
    refused = [site for site in sites if site.status == "refused"]
    assert [(site.path, site.reason) for site in refused] == [
        ("lm_head", "it is the output head, and its weight is tied with the embedding")
    ]
    assert {site.family for site in sites if site.status == "rewritten"} == {"gelu_tanh", "linear"}


def test_know_an_untied_head_by_dataflow():
    model = Gpt(2)
    model.output = model._modules.pop("lm_head")
    model.output.weight = nn.Parameter(torch.randn(64, 32))
    model.forward = lambda tokens: _forward(model, tokens)
    sites, capture = sites_of(model, torch.randint(64, (2, 8)), Config(targets="linear"))
    assert capture.linears == 2 * 4
    assert [site.path for site in sites if site.status == "refused"] == ["output"]
    assert "no other follows" in sites[-1].reason


def _forward(model, tokens):
    x = model.wte(tokens)
    for block in model.h:
        x = block(x)
    return model.output(x)


def test_give_up_a_refused_layer_for_its_linears():
    torch.manual_seed(0)
    model, capture = REFUSED["watched_hidden"].make(), Capture(config=Config(targets="linear"))
    check_masked(model, capture, input_of())
    assert [(site.family, site.linears) for site in capture.sites] == [("linear", 1), ("linear", 1)]


@pytest.mark.parametrize("which", ["fc1", "fc2"])
def test_take_no_undecorated_linear_beside_a_decorated_one(which: str) -> None:
    class Half(Sized):
        def forward(self, x):
            for name in ("fc1", "fc2"):
                with annotate({KEY: "{}"}) if name == which else contextlib.nullcontext():
                    x = self.get_submodule(name)(x if name == "fc1" else F.gelu(x))
            return x

    own = {"{}": passes.LinearOptions(dense_when="on Sundays")}
    never = {"profitable": lambda layer: "it does not pay", "decorated_options": own}
    (site,), _ = sites_of(Half(32, 64, 32), **never)
    assert (site.status, site.linears) == ("rewritten", 1), "the cost model is not asked"
    other = "fc2" if which == "fc1" else "fc1"
    assert site.reason.startswith(f"{other} stays dense: another module of this graph is decorated")
    assert site.reason.endswith("trains dense on Sundays")


@pytest.mark.parametrize(("pattern", "taken"), [("^fc1$", 1), ("^Blocks.0.fc2$", 1), ("^0.fc", 0), ("^c", 2)])
def test_search_the_regexes_of_a_decorator_from_any_module_on(pattern: str, taken: int) -> None:
    sites, _ = sites_of(Stack(Marked(f'{{"exclude": ["{pattern}"]}}')))
    assert [site.linears for site in sites] == [taken]


def test_say_nothing_of_a_linear_that_the_layer_before_takes() -> None:
    chain = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
    sites, capture = sites_of(chain, config=Config(targets="down"))
    assert [(site.linears, site.reason) for site in sites] == [(1, f"0 stays dense: {DOWN}"), (1, "")]
    assert capture.linears == 2


class Marked(Sized):
    """What `sparse_ffn` leaves in an outer graph."""

    def __init__(self, label: str) -> None:
        super().__init__(32, 64, 32)
        self.label = label

    def forward(self, x):
        with annotate({KEY: self.label}):
            return super().forward(x)


def test_take_only_decorated_modules_where_there_are_any():
    model = Stack(Sized(32, 64, 32), Marked("{}"))
    sites, capture = sites_of(model, config=Config(exclude=("Blocks",)))
    assert [site.status for site in sites] == ["refused", "rewritten"]
    assert "another module of this graph is decorated" in sites[0].reason
    assert {request.decorated for request in capture.rewrites[0].operands} == {"{}"}


def test_use_the_options_of_each_decorator():
    a, b = '{"recipe": "fst-exact"}', '{"recipe": "ste"}'
    model = Stack(Marked(a), Marked(b))
    own = {b: passes.LinearOptions(dx="dense", dw="dense")}
    _, capture = sites_of(model, decorated_options=own)
    transposed = [(request.decorated, request.needs_transpose) for request in capture.rewrites[0].operands]
    assert transposed == [(a, True), (a, True), (b, False), (b, False)]


def test_follow_the_regexes_of_each_decorator():
    model = Stack(Marked('{"exclude": ["fc1"]}'), Marked('{"include": ["0.fc", "fc1"]}'), Marked("{}"))
    sites, _ = sites_of(model, config=Config(exclude=(r"Blocks",)))
    assert [(site.path, site.linears, site.reason) for site in sites] == [
        ("Blocks.0", 1, "Blocks.0.fc1 stays dense: its path 'Blocks.0.fc1' matches exclude='fc1'"),
        (
            "Blocks.1",
            1,
            "Blocks.1.fc2 stays dense: its path 'Blocks.1.fc2' matches none of include=('0.fc', 'fc1')",
        ),
        ("Blocks.2", 2, ""),
    ]


@pytest.mark.parametrize(
    ("dw", "mvue_from", "expected"),
    [("auto", 64, ["dense", "mvue"]), ("auto", 65, ["dense", "dense"]), ("mvue", 65, ["mvue", "mvue"])],
)
def test_prune_output_gradients_by_the_input_features_of_each_linear(dw, mvue_from, expected):
    capture = Capture(options=passes.LinearOptions(dw=dw, mvue_from=mvue_from))
    torch._dynamo.reset()
    torch.compile(Sized(32, 64, 32), backend=capture)(input_of())
    assert [node.args[-1] for node in capture.nodes if node.target is torch.ops.s24.linear.default] == expected
    exact = [name for name, gradient in zip(("fc1", "fc2"), expected, strict=True) if gradient == "dense"]
    said = f"exact weight gradient in {' and '.join(exact)}: pruning it pays from {mvue_from} input features"
    assert [site.reason for site in capture.sites] == [said if exact else ""]


class MarkedSingle(nn.Module):
    """A decorated module that is no feed-forward layer."""

    def __init__(self, label: str = "{}") -> None:
        super().__init__()
        self.only = nn.Linear(32, 32)
        self.label = label

    def forward(self, x):
        with annotate({KEY: self.label}):
            return self.only(x)


def test_take_the_single_linears_of_a_decorated_module():
    sites, capture = sites_of(MarkedSingle())
    assert [(site.family, site.path, site.linears) for site in sites] == [("linear", "only", 1)]
    assert capture.linears == 1


@dataclasses.dataclass
class Reason:
    reason: str = "DDPOptimizer intentional graph-break (See Note [DDPOptimizer])."


def test_explain_the_cuts_of_ddp():
    sites = []

    def backend(gm, example_inputs):
        gm.compile_subgraph_reason = Reason()
        rewrite = passes.run(gm, Config(), passes.LinearOptions())
        sites.extend(rewrite.sites)
        assert rewrite.count == 0
        return gm.forward

    torch._dynamo.reset()
    torch.compile(Sized(32, 64, 32), backend=backend)(input_of())
    torch.compile(nn.LayerNorm(32), backend=backend)(input_of())
    assert len(sites) == 2
    assert all("optimize_ddp = False" in site.reason for site in sites)


def test_refuse_the_fused_inference_path_of_torch():
    model = ffns.TAKEN["encoder_layer"].make().eval()
    capture = Capture()
    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=capture)(input_of())
    assert "fused inference path" in capture.sites[0].reason


def test_name_the_node_of_a_broken_invariant():
    def breaks(state):
        node = next(n for n in state.graph_module.graph.nodes if str(n.target).startswith("s24.linear"))
        node.meta["example_value"] = None
        return 0

    def backend(gm, example_inputs):
        pipeline = (*passes.PASSES[:-1], breaks, passes.PASSES[-1])
        with pytest.raises(errors.LoweringError, match=r"s24_linear: it has no fake value"):
            passes.run(gm, Config(), passes.LinearOptions(), passes=pipeline)
        return gm.forward

    torch._dynamo.reset()
    torch.compile(Sized(32, 64, 32), backend=backend)(input_of())


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.add(x, alpha=0.5),
        lambda x: torch.add(x, 1, alpha=2),
        lambda x: torch.addmm(x.flatten(0, -2), x.flatten(0, -2), torch.eye(32), beta=2).view_as(x),
        lambda x: x.view(size=x.shape),
        lambda x: torch.reshape(input=x, shape=x.shape),
        lambda x: torch.add(x, x, out=torch.empty_like(x)),
    ],
    ids=[
        "add with alpha",
        "torch.add with alpha",
        "addmm with beta",
        "view by name",
        "reshape by name",
        "add with out",
    ],
)
def test_leave_spellings_alone_that_no_rule_knows(other):
    class Beside(Sized):
        def forward(self, x):
            return super().forward(x) + other(x.detach())

    sites, capture = sites_of(Beside(32, 64, 32))
    assert [site.status for site in sites if site.family == "gelu"] == ["rewritten"]
    assert capture.linears == 2


TRANSFORMS = {
    "vmap": lambda model, x: torch.vmap(model)(x),
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (x,))[1],
    "jacrev": lambda model, x: torch.func.jacrev(model)(x),
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_leave_transformed_layers_to_torch(name):
    model, x = ffns.Plain(F.gelu), torch.randn(2, 3, 32)
    torch._dynamo.reset()
    capture = Capture()
    compiled = torch.compile(lambda x: TRANSFORMS[name](model, x), backend=capture)
    torch.testing.assert_close(compiled(x), TRANSFORMS[name](model, x))
    assert capture.linears == 0
    assert "torch.func" in capture.sites[0].reason


@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32), (0, 2, 32)])
def test_take_layers_of_empty_batches(shape):
    capture = Capture()
    torch._dynamo.reset()
    assert torch.compile(ffns.Plain(F.gelu), backend=capture)(torch.randn(shape)).shape == shape
    assert capture.linears == 2


class ReadsWeight(ffns.Plain):
    """A second layer reads the first one's weight."""

    def __init__(self) -> None:
        super().__init__(F.gelu)
        self.reader = ffns.Plain(F.gelu)

    def forward(self, x):
        return super().forward(x).sum() + self.reader(self.fc1.weight).sum()


def test_refuse_a_weight_that_is_also_the_input_of_a_layer():
    torch.manual_seed(0)
    model, capture = ReadsWeight(), Capture()
    check_masked(model, capture, input_of())
    assert capture.linears == 3
    assert "fc1.weight" not in capture.masks
