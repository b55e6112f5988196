"""`@sparse_ffn`: sparse in eager code, inside an outer s24 compile, and never silently dense inside any other."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import s24compile
from s24compile import errors, sparse_ffn
from s24compile.config import Config
from s24compile.demo.model import MLP, GPTConfig
from s24compile.graphs.marks import KEY, config_of, mark
from s24compile.recipe import RECIPES
from tests.masked import live_masks, masked_call

OPTIONS: dict[str, Any] = {"inner": "eager", "gradient": "dense", "decay": 0.0}


def make_class() -> type[nn.Module]:
    """A fresh class per test: a class decorator changes the class for good."""

    class MLP(nn.Module):
        def __init__(self, width: int = 32, hidden: int = 64) -> None:
            super().__init__()
            self.fc1 = nn.Linear(width, hidden)
            self.fc2 = nn.Linear(hidden, width)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(nn.functional.gelu(self.fc1(x)))

    return MLP


class Two(nn.Module):
    """One decorated feed-forward layer and one that is not."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(x + self.first(x))


@pytest.fixture
def x(device: str) -> Tensor:
    return torch.randn(4, 8, 32, device=device)


def assert_masked(model: nn.Module, y: Tensor, x: Tensor, plain: nn.Module) -> None:
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(y, masked_call(plain, live_masks(model), x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inner", ["eager", "inductor"])
def test_be_sparse_in_eager_code(inner: str, x: Tensor) -> None:
    cls = make_class()
    plain = make_class()().to(x.device)
    decorated = sparse_ffn(**{**OPTIONS, "inner": inner})(cls)
    assert decorated is cls
    model = cls().to(x.device)
    y = model(x)
    assert set(s24compile.sparse_weights(model)) == {"fc1.weight", "fc2.weight"}
    assert_masked(model, y, x, plain)
    y.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_decorate_an_instance_and_leave_its_siblings_alone(x: Tensor) -> None:
    cls = make_class()
    model, sibling = cls().to(x.device), cls().to(x.device)
    keys = list(model.state_dict())
    assert sparse_ffn(model, **OPTIONS) is model
    assert list(model.state_dict()) == keys
    assert_masked(model, model(x), x, cls().to(x.device))
    sibling(x)
    assert not s24compile.sparse_weights(sibling)


@pytest.mark.parametrize("options", [{"targets": "down"}, {"exclude": "fc1"}], ids=["targets", "exclude"])
@pytest.mark.parametrize("outer", [False, True], ids=["alone", "in an outer compile"])
def test_take_the_linears_that_the_decoration_names(outer: bool, options: dict[str, Any], x: Tensor) -> None:
    model = Two(sparse_ffn(make_class()(), **OPTIONS, **options), make_class()()).to(x.device)
    # The outer compile's own regexes are for undecorated modules.
    called = torch.compile(model, backend="s24", options={**OPTIONS, "exclude": "fc2"}) if outer else model
    y = called(x)
    assert list(s24compile.sparse_weights(model)) == ["first.fc2.weight"]
    assert_masked(model, y, x, Two(make_class()(), make_class()()).to(x.device))


def test_keep_instances_of_one_class_apart(x: Tensor) -> None:
    cls, plain = make_class(), make_class()().to(x.device)
    sparse_ffn(**OPTIONS)(cls)
    for model in (cls().to(x.device), cls().to(x.device), cls(32, 128).to(x.device)):
        y = model(x)
        if model.fc1.weight.shape == plain.fc1.weight.shape:
            assert_masked(model, y, x, plain)
        assert len(live_masks(model)) == 2


def test_rewrite_only_decorated_modules_inside_an_outer_s24_compile(x: Tensor) -> None:
    cls = make_class()
    model = Two(sparse_ffn(cls(), recipe="sste"), cls()).to(x.device)
    fast = torch.compile(model, backend="s24", options=OPTIONS, fullgraph=True)
    fast(x)
    weights = s24compile.sparse_weights(model)
    assert set(weights) == {"first.fc1.weight", "first.fc2.weight"}
    assert {w.config.recipe for w in weights.values()} == {"sste"}


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_stay_sparse_inside_another_compiler(backend: str, x: Tensor) -> None:
    cls = make_class()
    model = Two(sparse_ffn(cls(), **OPTIONS), cls()).to(x.device)
    fast = torch.compile(model, backend=backend)
    y = fast(x)
    assert set(s24compile.sparse_weights(model)) == {"first.fc1.weight", "first.fc2.weight"}
    assert_masked(model, y, x, Two(cls(), cls()).to(x.device))


def test_fail_loudly_inside_another_compiler_that_allows_no_graph_break(x: Tensor) -> None:
    cls = make_class()
    model = Two(sparse_ffn(cls(), **OPTIONS), cls()).to(x.device)
    with pytest.raises(Exception, match="compile the rest around it with backend='s24'"):
        torch.compile(model, backend="aot_eager", fullgraph=True)(x)


def test_fail_loudly_under_export(x: Tensor) -> None:
    model = sparse_ffn(make_class()(), **OPTIONS).to(x.device)
    with pytest.raises(errors.DecoratorError, match=r"torch\.export"):
        torch.export.export(model, (x,))


def test_fail_loudly_where_compilation_is_switched_off(x: Tensor) -> None:
    model = sparse_ffn(make_class()(), **OPTIONS).to(x.device)
    with torch.compiler.set_stance("force_eager"), pytest.raises(errors.DecoratorError, match="train dense"):
        model(x)


def test_fail_loudly_where_no_layer_can_be_sparse(x: Tensor) -> None:
    model = sparse_ffn(make_class()(32, 30), **OPTIONS).to(x.device)
    with pytest.raises(errors.DecoratorError, match="30"):
        model(x)


@pytest.mark.parametrize("thing", [torch.relu, 3, int])
def test_refuse_what_is_no_module(thing: Any) -> None:
    with pytest.raises(errors.DecoratorError, match="subclass of"):
        sparse_ffn(thing)


def test_refuse_what_is_compiled_already_and_say_what_to_do() -> None:
    for backend in ("s24", "eager"):
        compiled: Any = torch.compile(make_class()(), backend=backend)
        with pytest.raises(errors.DecoratorError, match=r"compiled already; .*torch\.compile\(sparse_ffn\(module\)\)"):
            sparse_ffn(compiled)


def test_refuse_unknown_options_and_a_second_decoration() -> None:
    cls = make_class()
    with pytest.raises(errors.UnknownOptionError, match="recipe"):
        sparse_ffn(recip="fst")
    sparse_ffn(cls)
    for again in (cls, cls(), type("Heir", (cls,), {})):
        with pytest.raises(errors.DecoratorError, match="already"):
            sparse_ffn(again)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("other", RECIPES)
def test_mark_nodes_with_all_that_was_given(name: str, other: str) -> None:
    own = RECIPES[other]
    config = Config(recipe=name, gradient=own.gradient, decay=own.decay, mask_interval=own.mask_interval)
    assert config_of(mark(config)[KEY]) == config


def test_decorate_more_instances_than_dynamo_recompiles() -> None:
    blocks = [sparse_ffn(make_class()(), **OPTIONS) for _ in range(3)]
    blocks += [sparse_ffn(type(blocks[0])(), **OPTIONS) for _ in range(9)]
    x = torch.randn(4, 32)
    for block in blocks:
        x = block(x)
    assert all(len(s24compile.sparse_weights(block)) == 2 for block in blocks)


@pytest.mark.parametrize("again", [lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_stay_decorated_when_pickled_or_copied(again: Any) -> None:
    module = sparse_ffn(MLP(GPTConfig(n_embd=32)), **OPTIONS)  # a class that pickle finds
    x = torch.randn(4, 32)
    other = again(module)
    assert torch.equal(other.c_fc.weight, module.c_fc.weight)
    y = other(x)
    assert len(s24compile.sparse_weights(other)) == 2
    assert not s24compile.sparse_weights(module), "the other is another"
    torch.testing.assert_close(y, masked_call(other, live_masks(other), x))
    assert again(other).forward.s24_config == module.forward.s24_config


def test_explain_what_is_decorated_as_it_will_train() -> None:
    host = Two(sparse_ffn(make_class()(), **OPTIONS), make_class()())
    x = torch.randn(4, 32)
    report = s24compile.explain(host, x)
    assert [site.path for site in report.rewritten] == ["first"]
    assert [site.path for site in report.refused] == ["second"]
    assert not s24compile.sparse_weights(host), "explain makes nothing sparse"
    alone = s24compile.explain(host.first, x)
    assert (alone.linears, alone.graphs, alone.unseen) == (2, 1, ())


@pytest.mark.parametrize("decorated", [True, False])
def test_train_under_activation_checkpointing_from_outside(decorated: bool) -> None:
    module = make_class()()
    if decorated:
        module = sparse_ffn(module, **OPTIONS)
    else:
        module.compile(backend="s24", options=OPTIONS)
    x = torch.randn(4, 32, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False)
    y.sum().backward()
    assert x.grad is not None
    assert len(s24compile.sparse_weights(module)) == 2


def test_warn_of_a_decorated_layer_that_an_outer_compile_refuses(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    mlp = make_class()
    model = Two(sparse_ffn(mlp(hidden=62)), sparse_ffn(mlp())).to(x.device)
    with caplog.at_level("WARNING", logger="s24compile"):
        torch.compile(model, backend="s24", options=OPTIONS)(x)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("first: gelu 32 -> 62 -> 32 refused")
    assert set(s24compile.sparse_weights(model)) == {"second.fc1.weight", "second.fc2.weight"}


def test_stay_quiet_about_what_is_not_decorated(x: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    mlp = make_class()
    model = Two(sparse_ffn(mlp()), mlp()).to(x.device)
    with caplog.at_level("WARNING", logger="s24compile"):
        torch.compile(model, backend="s24", options=OPTIONS)(x)
    assert not caplog.records
