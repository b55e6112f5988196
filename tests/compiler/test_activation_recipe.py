"""recipe="activation" through torch.compile: numbers, phases, state, statistics, and what it says."""

from __future__ import annotations

import io
import itertools
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import s24compile
from s24compile.config import Config
from s24compile.errors import CheckpointError, ConflictError, DecoratorError, ModelError, OptionError
from tests.closeness import assert_as_close_as_torch
from tests.pruned import pruned_call

EXACT = {"recipe": "activation", "dense_until": 0, "gradient": "dense", "inner": "aot_eager", "min_speedup": 0.0}
D, HIDDEN = 16, 64


class Mlp(nn.Module):
    """nanochat's: squared ReLU, no bias, weights cast in the forward."""

    def __init__(self, drop: float = 0.0) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(D, HIDDEN, bias=False), nn.Linear(HIDDEN, D, bias=False)
        self.drop = drop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(F.linear(x, self.c_fc.weight.to(x.dtype))).square()
        return F.linear(F.dropout(h, self.drop, self.training), self.c_proj.weight.to(x.dtype))


class Net(nn.Module):
    def __init__(self, layers: int = 2, drop: float = 0.0, checkpointed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Mlp(drop) for _ in range(layers))
        self.checkpointed = checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x))
        return x


def downs(layers: int) -> list[str]:
    return [f"blocks.{i}.c_proj.weight" for i in range(layers)]


def compiled(model: nn.Module, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(model, backend="s24", options={**EXACT, **options})


def gradients(y: torch.Tensor, x: torch.Tensor, model: nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(7)
    return list(torch.autograd.grad(y, [x, *model.parameters()], torch.randn_like(y)))


@pytest.mark.parametrize("inner", ["eager", "aot_eager", "inductor"])
def test_train_as_dense_arithmetic_on_pruned_states_does(inner, on_device):
    model, x = Net(), torch.randn(2, 9, D, requires_grad=True)
    y = compiled(model, inner=inner)(x)
    expected = pruned_call(model, downs(2), x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(y, x, model), gradients(expected, x, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_draw_and_recompute_as_the_users_dropout_does(checkpointed, on_device):
    model, x = Net(drop=0.3, checkpointed=checkpointed), torch.randn(2, 9, D, requires_grad=True)
    torch.manual_seed(3)
    y = compiled(model)(x)
    torch.manual_seed(3)
    model.checkpointed = False
    expected = pruned_call(model, downs(2), x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(y, x, model), gradients(expected, x, model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stay_as_close_as_torch_under_autocast(dtype, device, on_device):
    model, x = Mlp(), torch.randn(64, D, requires_grad=True)
    with torch.autocast(device, dtype=dtype):
        y = compiled(model)(x)
        torchs = pruned_call(model, ["c_proj.weight"], x)
    exact_model, exact_x = Mlp().double(), x.detach().to(dtype).double().requires_grad_()
    for ours, theirs in zip(exact_model.parameters(), model.parameters(), strict=True):
        ours.data.copy_(theirs.detach().to(dtype))
    exact = pruned_call(exact_model, ["c_proj.weight"], exact_x)
    assert_as_close_as_torch(y, torchs, exact, "y")
    found, wanted = gradients(y, x, model), gradients(torchs, x, model)
    for name, ours, theirs, truth in zip(
        ("dx", "dw1", "dw2"), found, wanted, gradients(exact.to(dtype), exact_x, exact_model), strict=True
    ):
        # What was rounded to 16 bits on the way is 16 bits exact, whatever dtype it has now.
        assert_as_close_as_torch(ours.to(dtype), theirs.to(dtype), truth, name)


def test_hold_no_sparse_weight_and_leave_parameters_alone(on_device):
    model, x = Net(), torch.randn(4, D)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    compiled(model, inner="eager")(x).sum().backward()
    assert s24compile.sparse_weights(model) == {}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    s24compile.refresh(model)
    with pytest.raises(ModelError, match="such a model is exported as it is"):
        s24compile.bake_(model)


def train(fast: Any, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        x = torch.randn(32, D, generator=torch.Generator().manual_seed(step)).to(next(model.parameters()).device)
        torch.manual_seed(step)
        loss = fast(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def phases_of(model: nn.Module) -> list[bool]:
    """Whether each layer's last forward was 2:4, by what it counted."""
    stats = s24compile.activation_stats(model)
    return [s.tokens is not None for s in stats.values()]


def test_start_dense_and_end_dense_by_the_steps_of_the_optimizer(on_device):
    model = Net()
    fast = compiled(model, dense_until=2, dense_after=4, inner="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = torch.randn(8, D)
    seen = []
    for _ in range(5):
        seen.append(torch.equal(fast(x), model(x)))
        train(fast, model, optimizer, 1)
    assert seen == [True, True, False, False, True]
    s24compile.set_phase(model, "sparse")
    assert not torch.equal(fast(x), model(x))
    s24compile.set_phase(model, "dense")
    assert torch.equal(fast(x), model(x))


def test_start_dense_for_300_steps_unless_told_otherwise(on_device):
    assert Config(recipe="activation").dense_until == 300
    model = Net()
    fast = torch.compile(model, backend="s24", options={"recipe": "activation", "inner": "eager"})
    torch.testing.assert_close(fast(x := torch.randn(8, D)), model(x))
    assert phases_of(model) == [False, False]
    assert s24compile.activation_stats(model)["blocks.0"].nonzero is None
    s24compile.set_phase(model, "sparse")
    fast(x)
    assert phases_of(model) == [True, True]


def test_resume_bit_for_bit_in_the_dense_start_and_after_it(on_device):
    options = {"dense_until": 3, "gradient": "mvue", "inner": "eager"}

    def fresh() -> tuple[Any, nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Net(drop=0.1)
        return compiled(model, **options), model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    fast, model, optimizer = fresh()
    whole = train(fast, model, optimizer, 6)
    for stop in (2, 5):
        fast, model, optimizer = fresh()
        assert train(fast, model, optimizer, stop) == whole[:stop]
        buffer = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), s24compile.state_dict(model)], buffer)
        buffer.seek(0)
        weights, moments, state = torch.load(buffer, weights_only=True)
        fast, model, optimizer = fresh()
        model.load_state_dict(weights)
        optimizer.load_state_dict(moments)
        s24compile.load_state_dict(model, state)
        assert train(fast, model, optimizer, 6 - stop, stop) == whole[stop:]


def test_save_schedules_alone_and_refuse_a_foreign_state(on_device):
    model = Net()
    compiled(model, inner="eager")(torch.randn(4, D))
    state = s24compile.state_dict(model)
    assert list(state) == downs(2)
    assert all("patterns" not in entry for entry in state.values())
    other = Net()
    with pytest.raises(CheckpointError, match="saved together"):
        s24compile.load_state_dict(other, {downs(2)[0]: state[downs(2)[0]]})
    s24compile.load_state_dict(other, state)
    with pytest.raises(CheckpointError, match=r"has no entry for 'blocks\.0\.c_fc\.weight'"):
        compiled(other, recipe="fst", gradient="mvue")(torch.randn(4, D))


def test_refuse_two_trainings_of_one_weight(on_device):
    model = Net()
    compiled(model, inner="eager")(torch.randn(4, D))
    with pytest.raises(ConflictError, match="recipe"):
        compiled(model, recipe="fst")(torch.randn(4, D))


def test_count_per_layer_where_one_graph_serves_several(on_device):
    model = Net(3)
    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend="s24", options={**EXACT, "inner": "eager"})
    x = torch.randn(5, D)
    model(x)
    stats = s24compile.activation_stats(model)
    assert list(stats) == ["blocks.0", "blocks.1", "blocks.2"]
    for i, block in enumerate(model.blocks):
        h = F.relu(F.linear(x, block.c_fc.weight)).square()
        found = stats[f"blocks.{i}"]
        kept = s24compile.ops.magnitude_mask(h)
        assert found.tokens == 5
        assert found.nonzero == pytest.approx((h > 0).float().mean().item())
        assert found.over == pytest.approx(((h > 0).unflatten(1, (-1, 4)).sum(2) > 2).float().mean().item())
        assert found.dropped == pytest.approx((h[~kept].sum() / h.sum()).item(), rel=1e-5)
        x = x + F.linear(h * kept, block.c_proj.weight)


def test_tell_models_apart_that_share_a_graph(on_device):
    torch._dynamo.reset()
    models = [Net(1), Net(1)]
    with torch.no_grad():
        models[1].blocks[0].c_fc.weight.abs_().neg_()
    fasts = [torch.compile(model, backend="s24", options=EXACT) for model in models]
    for fast in fasts:
        fast(torch.rand(4, D))
    shares = [s24compile.activation_stats(model)["blocks.0"].nonzero for model in models]
    assert shares[0] > 0.2
    assert shares[1] == 0.0


def test_name_a_layer_by_its_last_projection_where_two_share_a_module(on_device):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(*size) for size in ((D, HIDDEN), (HIDDEN, D)) * 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x + self.b(F.relu(self.a(x)))
            return x + self.d(F.relu(self.c(x)))

    model = Two()
    compiled(model, inner="eager")(torch.randn(4, D))
    assert list(s24compile.activation_stats(model)) == ["b", "d"]


def test_compile_for_changing_token_counts_a_few_times(on_device):
    model = Net(1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fast = torch.compile(model, backend="s24", options=EXACT, dynamic=True)
    for tokens in (70, 80, 71, 96, 93, 200, 129):
        x = torch.randn(tokens, D, requires_grad=True)
        y = fast(x)
        expected = pruned_call(model, downs(1), x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
        y.sum().backward()
        assert s24compile.activation_stats(model)["blocks.0"].tokens == tokens
    # Rows of packed estimates are padded to 16 bytes: whole or not is what a graph is specialised on.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("tokens", [0, 1, 7, 154])
def test_take_any_number_of_tokens(tokens, on_device):
    model, x = Mlp(), torch.randn(tokens, D, requires_grad=True)
    y = compiled(model, gradient="mvue")(x)
    torch.testing.assert_close(y, pruned_call(model, ["c_proj.weight"], x), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert model.c_fc.weight.grad.shape == (HIDDEN, D)


def test_serve_evaluation_and_later_training_alike(on_device):
    model, x = Net(), torch.randn(4, D, requires_grad=True)
    fast = compiled(model)
    with torch.inference_mode():
        first = fast(x)
    with torch.no_grad():
        second = fast(x)
    third = fast(x)
    third.sum().backward()
    torch.testing.assert_close(first, third.detach())
    torch.testing.assert_close(second, third.detach())
    assert x.grad is not None


def test_pass_nan_on_as_dense_does(on_device):
    model, x = Mlp(), torch.randn(4, D)
    x[1, 3] = torch.nan
    y = compiled(model)(x)
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


def test_decorate_a_module_and_compile_the_rest_with_another_recipe(on_device):
    @s24compile.sparse_ffn(**EXACT)
    class Own(Mlp):
        pass

    model, x = Own(), torch.randn(4, D)
    torch._dynamo.reset()
    plain = Mlp()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), pruned_call(plain, ["c_proj.weight"], x), rtol=1e-5, atol=1e-5)
    assert list(s24compile.activation_stats(model)) == [""]
    outer = nn.Sequential(Own(), nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
    torch._dynamo.reset()
    torch.compile(outer, backend="s24", options={"inner": "eager"})(x)
    assert list(s24compile.activation_stats(outer)) == ["0"]
    assert not s24compile.sparse_weights(outer), "only decorated modules are taken"

    @s24compile.sparse_ffn(**EXACT)
    class Gelu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.gelu(self.a(x)))

    with pytest.raises(DecoratorError, match="its hidden state is not sparse"):
        Gelu()(x)


def test_say_at_info_which_recipe_there_is_for_such_a_layer(caplog, on_device):
    with caplog.at_level(logging.INFO, logger="s24compile"):
        compiled(Mlp(), recipe="fst", inner="eager")(torch.randn(4, D))
    assert "recipe='activation'" in caplog.text
    report = s24compile.explain(Mlp(), torch.randn(4, D))
    assert "recipe='activation'" in str(report)
    assert report.rewritten


def test_explain_the_bytes_and_kernels_of_such_a_layer(on_device):
    report = s24compile.explain(compiled(Mlp()), torch.randn(128, D))
    assert report.saved_bytes == {"P": 128 * HIDDEN * 2 + 128 * HIDDEN // 8}
    assert [op for op, _ in report.providers] == ["mm", "activation_pack", "activation_backward_pack"]


def test_log_the_bytes_that_a_graph_saves(caplog, on_device):
    model = Mlp()
    with caplog.at_level(logging.INFO, logger="s24compile"):
        compiled(model)(torch.randn(128, D, requires_grad=True))
    (logged,) = [r.getMessage() for r in caplog.records if "this graph saves" in r.getMessage()]
    assert logged.endswith("P 17.4 kB, X 8.2 kB")


@pytest.mark.parametrize("inner", ["aot_eager", "inductor"])
def test_save_memory_without_another_number(inner, caplog, on_device):
    """The packed state is the least that there is to keep: memory="save" leaves it at that."""
    grads, kept = [], []
    for memory in ("speed", "save"):
        torch.manual_seed(0)
        model, x = Mlp(), torch.randn(128, D, requires_grad=True)
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="s24compile"):
            compiled(model, memory=memory, inner=inner)(x).sum().backward()
        kept += [r.getMessage() for r in caplog.records if "this graph saves" in r.getMessage()]
        grads.append([x.grad, *(p.grad for p in model.parameters())])
    for speed, save in zip(*grads, strict=True):
        torch.testing.assert_close(speed, save, rtol=0, atol=0)
    assert kept[0] == kept[1]
    assert "H " not in kept[0]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
def test_pass_infinities_on_as_dense_does(value, on_device):
    model, x = Mlp(), torch.randn(4, D)
    x[1, 3] = value
    y, dense = compiled(model)(x), model(x)
    assert torch.equal(y[1].isfinite(), dense[1].isfinite())
    assert y[[0, 2, 3]].isfinite().all()


def test_train_where_nothing_is_positive(on_device):
    model, x = nn.Sequential(nn.Linear(D, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, D)), torch.randn(9, D)
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    x.requires_grad_()
    y = compiled(model, gradient="mvue")(x)
    torch.testing.assert_close(y, model[2].bias.expand_as(y))
    y.sum().backward()
    assert not x.grad.any()
    assert not model[0].weight.grad.any()
    assert not model[2].weight.grad.any()
    assert torch.equal(model[2].bias.grad, torch.full((D,), 9.0, device=y.device))
    (found,) = s24compile.activation_stats(model).values()
    assert (found.nonzero, found.over, found.dropped) == (0.0, 0.0, 0.0)


def test_keep_less_for_the_backward_than_the_dense_layer(on_device):
    model, x = Mlp(), torch.randn(64, D, requires_grad=True)
    y = compiled(model)(x)
    own = {t.untyped_storage().data_ptr() for t in (x, *model.parameters())}
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in y.grad_fn.saved_tensors
        if t.untyped_storage().data_ptr() not in own
    }
    assert sum(held.values()) == 64 * HIDDEN * 2 + 64 * HIDDEN // 8


def test_refuse_options_that_mean_nothing_here():
    for options, word in itertools.product(({"decay": 1e-4}, {"mask_interval": 40}, {"decay": 0.0}), ("leave it out",)):
        with pytest.raises(OptionError, match=word):
            Config(recipe="activation", **options)
    with pytest.raises(OptionError, match="dense_until"):
        Config(recipe="activation", total_steps=200)
    with pytest.raises(OptionError, match="input_gradient"):
        Config(recipe="activation", input_gradient="mvue")
