"""The search for lambda: the paper's ratio of flip rates, and a run that is bitwise where it was, however it ends."""

from __future__ import annotations

import _thread
import copy
import math
import random

import pytest
import torch
from torch import nn

import s24compile
from s24compile import errors
from s24compile.config import Config
from s24compile.training.decay_search import DecaySearch, Trial
from s24compile.training.flip_rate import history_of
from s24compile.training.snapshot import Snapshot
from s24compile.training.tune_decay import tune_decay
from s24compile.weights.model_state import sparse_weights, state_dict
from s24compile.weights.registry import TOLD
from tests.freshening import MLP, recorded_ops, sparse_forward

FST = Config(mask_interval=3, decay=1e-3)


class WithBuffers(MLP):
    """An MLP whose forward moves a buffer, draws from torch's generator, and adds a buffer when it first runs."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)


def prepared(config=FST, steps=0, model_class=WithBuffers, **adamw):
    """(model, optimizer, scheduler, train_step), `steps` optimizer steps into a run."""
    torch.manual_seed(0)
    random.seed(0)
    model = model_class()
    optimizer = torch.optim.AdamW(model.parameters(), **({"lr": 1e-2} | adamw))
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=100)

    def train_step(i):
        model.calls += 1
        if "late" not in model._buffers:
            model.register_buffer("late", torch.zeros(3))
        x = torch.randn(24, 16, generator=torch.Generator().manual_seed(i)) + torch.randn(24, 16) * random.random() / 9
        loss = (sparse_forward(model, x, config) - x.roll(1, -1)).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=i % 2 == 0)
        return loss

    for i in range(steps):
        train_step(i)
    return model, optimizer, scheduler, train_step


def everything(model, optimizer, scheduler):
    """All that a run depends on, copied; comparable with `same`."""
    return copy.deepcopy(
        {
            "parameters": {n: p.detach() for n, p in model.named_parameters()},
            "grads": {n: p.grad for n, p in model.named_parameters()},
            "buffers": dict(model.named_buffers()),
            "training": {n: m.training for n, m in model.named_modules()},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "s24": state_dict(model),
            "decay": {n: (w.decay, w.held, w.phase, w.age, w.flip_rate) for n, w in sparse_weights(model).items()},
            "histories": {n: history_of(w).rates for n, w in sparse_weights(model).items()},
            "told": {n: (t.phase, t.decay) for n, p in model.named_parameters() if (t := TOLD.get(p)) is not None},
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
        }
    )


def same(one, two):
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


@pytest.mark.parametrize("steps", [0, 7], ids=["before the first forward", "in a run"])
def test_leave_the_run_bitwise_as_it_was(steps):
    model, optimizer, scheduler, train_step = prepared(steps=steps)
    before = everything(model, optimizer, scheduler)
    tune_decay(model, optimizer, train_step, candidates=(1e-4, 1e-2), steps=6, also=[scheduler])
    after = everything(model, optimizer, scheduler)
    for part in before:
        assert same(before[part], after[part]), part
    # The rest of the run, too: nothing outside of what we can list has changed.
    losses = [train_step(i) for i in range(steps, steps + 8)]
    twin = prepared(steps=steps)
    assert same(losses, [twin[3](i) for i in range(steps, steps + 8)])
    assert same(everything(model, optimizer, scheduler), everything(*twin[:3]))


def test_tune_a_resumed_run_before_its_first_forward():
    def resumed():
        model, optimizer, scheduler, _ = prepared(steps=7)
        again, again_optimizer, again_scheduler, step = prepared()
        step_buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        again.register_buffer("late", torch.zeros(3))
        again.load_state_dict(model.state_dict())
        again.calls.copy_(step_buffers["calls"])
        again_optimizer.load_state_dict(optimizer.state_dict())
        again_scheduler.load_state_dict(scheduler.state_dict())
        s24compile.load_state_dict(again, state_dict(model))
        torch.manual_seed(1)
        random.seed(1)
        return again, again_optimizer, again_scheduler, step

    model, optimizer, scheduler, train_step = resumed()
    before = everything(model, optimizer, scheduler)
    tune_decay(model, optimizer, train_step, candidates=(1e-4, 1e-2), steps=6, also=[scheduler])
    after = everything(model, optimizer, scheduler)
    for part in before:
        assert same(before[part], after[part]), part
    losses = [train_step(i) for i in range(7, 12)]
    twin = resumed()
    assert same(losses, [twin[3](i) for i in range(7, 12)])
    assert same(everything(model, optimizer, scheduler), everything(*twin[:3]))


@pytest.mark.parametrize("where", ["dense run", "second candidate"])
@pytest.mark.parametrize("kind", ["Ctrl-C", "exception"])
def test_restore_when_it_is_interrupted(kind, where):
    model, optimizer, scheduler, train_step = prepared(steps=4)
    before = everything(model, optimizer, scheduler)
    fails_at = 3 if where == "dense run" else 2 * 6 + 3
    calls = 0

    def failing_step(i):
        nonlocal calls
        calls += 1
        if calls == fails_at:
            sparse_forward(model, torch.randn(24, 16), FST).sum().backward()
            if kind == "exception":
                raise ZeroDivisionError("the user's own")
            _thread.interrupt_main()  # the signal's handler, as a terminal would call it
        return train_step(i)

    with pytest.raises(KeyboardInterrupt if kind == "Ctrl-C" else ZeroDivisionError):
        tune_decay(model, optimizer, failing_step, candidates=(1e-4, 1e-2), steps=6, also=[scheduler])
    assert calls == fails_at
    after = everything(model, optimizer, scheduler)
    for part in before:
        assert same(before[part], after[part]), part


def test_finish_restoring_before_an_interrupt_gets_through():
    model, optimizer, scheduler, train_step = prepared(steps=4)
    before = everything(model, optimizer, scheduler)

    class Interrupting:
        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            _thread.interrupt_main()

    snapshot = Snapshot(model, optimizer, [Interrupting(), scheduler])
    train_step(4)
    with pytest.raises(KeyboardInterrupt):
        snapshot.restore()
    assert same(before, everything(model, optimizer, scheduler))


def test_keep_optimizer_states_of_another_dtype():
    parameter = nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    # torch's own load_state_dict would round this to bfloat16.
    optimizer.state[parameter]["average"] = torch.full((4, 4), 1 / 3)
    snapshot = Snapshot(nn.ParameterList([parameter]), optimizer)
    optimizer.state[parameter]["average"].zero_()
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    snapshot.restore()
    assert torch.equal(optimizer.state[parameter]["average"], torch.full((4, 4), 1 / 3))
    assert len(optimizer.param_groups) == 1


def test_write_into_the_tensors_of_the_optimizer() -> None:
    """As the CUDA graphs of a capturable optimizer need it, which hold addresses."""
    parameter = nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.AdamW([parameter], lr=torch.tensor(0.1), foreach=False)

    def step() -> None:
        parameter.grad = torch.randn(4, 4)
        optimizer.step()

    step()
    state, group = optimizer.state[parameter], optimizer.param_groups[0]
    state["history"] = [torch.ones(3), (torch.ones(2), "a word")]  # as L-BFGS has one
    state["cast"] = torch.ones(3)
    before = copy.deepcopy(optimizer.state_dict())
    held = {"lr": group["lr"]} | {name: state[name] for name in ("step", "exp_avg", "exp_avg_sq")}
    inner = state["history"][1][0]
    snapshot = Snapshot(nn.ParameterList([parameter]), optimizer)
    for _ in range(2):
        step()
        state["exp_avg"] = torch.zeros(4, 4)
        state["history"][1][0].zero_()
        state["history"].append("more")
        state["cast"].data = torch.ones(5, dtype=torch.float64)
        group["lr"].fill_(1.0)
        snapshot.restore()
        state = optimizer.state[parameter]
        assert same(optimizer.state_dict(), before)
        assert group["lr"] is held["lr"]
        assert all(state[name] is held[name] for name in ("step", "exp_avg", "exp_avg_sq"))
        assert state["history"][1][0] is inner


def naive_flip_rates(decay, steps):
    """The same runs, written down plainly: masks of the weights after each step, compared with the step before."""
    model, _, _, train_step = prepared(Config(mask_interval=3, decay=decay or 0.0), lr=3e-2)
    if decay is None:
        s24compile.set_phase(model, "dense")
    masks, rates = None, []
    for i in range(steps):
        train_step(i)
        now = [s24compile.ops.transposable_mask(layer.weight) for layer in (model.up, model.down)]
        if masks is not None:
            rates.append(sum(int((a != b).sum()) for a, b in zip(masks, now, strict=True)) / (2 * 16 * 32))
        masks = now
    return rates


def test_measure_the_ratio_of_the_paper():
    model, optimizer, scheduler, train_step = prepared(Config(mask_interval=3, decay=0.7), lr=3e-2)
    found = tune_decay(model, optimizer, train_step, candidates=(1.0, 0.0, 1e-2), steps=8, also=[scheduler])
    assert [trial.decay for trial in found.trials] == [0.0, 1e-2, 1.0], "ascending"
    dense = naive_flip_rates(None, 8)
    assert found.dense.flip_rates == pytest.approx(dense, rel=1e-6)
    for trial in found.trials:
        rates = naive_flip_rates(trial.decay, 8)
        assert trial.flip_rates == pytest.approx(rates, rel=1e-6)
        assert trial.mu == pytest.approx(sum(rates[3:]) / sum(dense[3:]))
        assert len(trial.losses) == 8
    assert found.trials[-1].mu < found.trials[0].mu, "strong decay calms the masks"


def test_pack_no_weight_in_the_dense_run():
    model, optimizer, scheduler, train_step = prepared()
    packed = []

    def watched(i):
        with recorded_ops() as calls:
            loss = train_step(i)
        packed.append("linear" in calls)
        return loss

    tune_decay(model, optimizer, watched, candidates=(1e-4,), steps=4, also=[scheduler])
    assert packed == [False] * 4 + [True] * 4


def search_of(*pairs):
    trials = tuple(Trial(decay, (0.1, 0.1), (), mu) for decay, mu in pairs)
    return DecaySearch(Trial(None, (0.1, 0.1), (), 1.0), trials, (0.60, 0.95))


@pytest.mark.parametrize(
    ("pairs", "chosen", "advice"),
    [
        (((1e-5, 0.94), (1e-4, 0.8), (1e-3, 0.61)), 1e-4, "decay=0.0001"),
        (((1e-5, 1.2), (1e-4, 0.60)), 1e-4, "decay=0.0001"),
        (((1e-5, 1.2), (1e-4, 0.96)), None, "above 0.0001"),
        (((1e-5, 0.5), (1e-4, 0.2)), None, "below 1e-05"),
        (((1e-5, 1.1), (1e-4, 0.3)), None, "between 1e-05 and 0.0001"),
    ],
)
def test_choose_what_lies_inside_the_feasible_range(pairs, chosen, advice):
    found = search_of(*pairs)
    assert found.chosen == chosen
    assert advice in found.advice
    table = str(found).splitlines()
    assert table[-1] == found.advice
    assert len(table) == 3 + len(pairs)
    assert [line.endswith("harms") for line in table[2:-1]] == [mu >= 1 for _, mu in pairs]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"candidates": ()}, errors.OptionError, "candidates"),
        ({"candidates": (1e-4, -1e-4)}, errors.OptionError, "candidates"),
        ({"candidates": (math.nan,)}, errors.OptionError, "candidates"),
        ({"candidates": 3}, errors.OptionError, "candidates"),
        ({"on_step": 3}, errors.OptionError, "on_step"),
        ({"step": 3}, errors.OptionError, "train_step"),
        ({"steps": 3}, errors.OptionError, "steps"),
        ({"steps": True}, errors.OptionError, "steps"),
        ({"config": Config(recipe="sste")}, errors.OptionError, "no masked decay"),
        ({"config": Config(dense_after=0)}, errors.OptionError, "dense_after"),
        ({"adamw": {"lr": 0.0, "weight_decay": 0.0}}, errors.ModelError, "learning rate"),
        ({"step": lambda i: None}, errors.ModelError, "no weight of the model sparse"),
    ],
)
def test_refuse_and_change_nothing(options, error, said):
    options = dict(options)
    model, optimizer, scheduler, train_step = prepared(options.pop("config", FST), steps=0, **options.pop("adamw", {}))
    before = everything(model, optimizer, scheduler)
    with pytest.raises(error, match=said):
        tune_decay(model, optimizer, options.pop("step", train_step), **({"steps": 4} | options), also=[scheduler])
    assert same(before, everything(model, optimizer, scheduler))


def test_refuse_arguments_that_are_something_else():
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(errors.ModelError, match="a int was given"):
        tune_decay(3, optimizer, lambda i: None)
    with pytest.raises(errors.OptionError, match=r"optimizer=3 .* torch\.optim\.Optimizer"):
        tune_decay(model, 3, lambda i: None)
    for also in (3, [3]):
        with pytest.raises(errors.OptionError, match="also="):
            tune_decay(model, optimizer, lambda i: None, also=also)


@pytest.mark.parametrize(("steps_a_call", "made"), [(0, 0), (2, 2)])
def test_refuse_an_optimizer_that_does_not_hold_the_weights(steps_a_call, made):
    model, optimizer, scheduler, _ = prepared()
    other = torch.optim.AdamW([nn.Parameter(torch.zeros(3))])

    def step(i):
        sparse_forward(model, torch.randn(24, 16), FST).sum().backward()
        other.step()
        for _ in range(steps_a_call):
            optimizer.step()

    before = everything(model, optimizer, scheduler)
    with pytest.raises(errors.ModelError, match=rf"'up\.weight' have made {made} steps"):
        tune_decay(model, optimizer, step, steps=4, also=[scheduler])
    assert same(before, everything(model, optimizer, scheduler))


def test_tune_a_compiled_model_without_compiling_per_candidate():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
    compiled = torch.compile(model, backend="s24", options={"inner": "aot_eager"})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def train_step(i):
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(i))
        loss = (compiled(x) - x.flip(-1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    torch._dynamo.utils.counters.clear()
    found = s24compile.tune_decay(compiled, optimizer, train_step, candidates=(1e-4, 1e-1, 10.0), steps=6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "one dense and one sparse"
    assert state_dict(model) == {}
    assert found.trials[-1].mu < found.trials[0].mu
    first = found.trials[0].losses[0]
    assert all(trial.losses[0] == first for trial in found.trials), "each run starts from the same moment"
