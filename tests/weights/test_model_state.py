"""The model-level functions: saving and resuming bitwise, refusing what does not fit, phases, baking."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from s24compile import errors, ops
from s24compile.config import Config
from s24compile.weights.model_state import bake_, load_state_dict, refresh, set_phase, sparse_weights, state_dict
from tests.freshening import MLP, recorded_ops, sparse_forward, sparse_linear, train

FST = Config(mask_interval=3)
RECIPES = ["fst", "fst-exact", "fst-down", "sste", "ste", "srste", "step"]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def trained(steps=4, config=FST):
    model = MLP()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), config, range(steps))
    return model


def assert_same_state(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].keys() == two[name].keys()
        for field, value in one[name].items():
            same = (
                torch.equal(value, two[name][field]) if isinstance(value, torch.Tensor) else value == two[name][field]
            )
            assert same, (name, field)


def test_name_weights_as_the_innermost_model_does():
    model = trained()
    assert set(sparse_weights(model)) == {"up.weight", "down.weight"}
    assert set(state_dict(model)) == {"up.weight", "down.weight"}
    assert set(state_dict(torch.compile(model))) == {"up.weight", "down.weight"}
    assert set(state_dict(nn.DataParallel(torch.compile(model)))) == {"up.weight", "down.weight"}
    outer = nn.Module()
    outer.block = torch.compile(model)
    assert set(state_dict(outer)) == {"block.up.weight", "block.down.weight"}
    outer.module = model  # a submodule's own name, which no wrapper gave
    del outer.block
    assert set(state_dict(outer)) == {"module.up.weight", "module.down.weight"}


def test_snapshot_rather_than_alias():
    model = trained()
    saved = state_dict(model)
    kept = copy.deepcopy(saved)
    train(model, torch.optim.SGD(model.parameters(), lr=1.0), FST, range(4, 12))
    assert_same_state(saved, kept)


@pytest.mark.parametrize("split", [3, 4, 5])
@pytest.mark.parametrize("recipe", RECIPES)
def test_resume_bitwise(recipe, split):
    config = Config(recipe=recipe, mask_interval=3, decay=1e-2, dense_after=8)

    def fresh():
        torch.manual_seed(0)
        model = MLP()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2)

    model, optimizer = fresh()
    losses = train(model, optimizer, config, range(10))

    half, half_optimizer = fresh()
    train(half, half_optimizer, config, range(split))
    checkpoint = through_a_file(
        {"model": half.state_dict(), "optimizer": half_optimizer.state_dict(), "s24": state_dict(half)}
    )
    resumed = MLP()
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-2)
    resumed.load_state_dict(checkpoint["model"])
    resumed_optimizer.load_state_dict(checkpoint["optimizer"])
    load_state_dict(resumed, checkpoint["s24"])
    rest = train(resumed, resumed_optimizer, config, range(split, 10))

    assert torch.equal(rest, losses[split:])
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name
    assert_same_state(state_dict(model), state_dict(resumed))
    for name, weight in sparse_weights(model).items():
        assert weight.flip_rate == sparse_weights(resumed)[name].flip_rate


_RESUME = """
import sys, torch
sys.path.insert(0, {root!r})
from s24compile.config import Config
from s24compile.weights.model_state import load_state_dict
from tests.freshening import MLP, train
checkpoint = torch.load(sys.argv[1], weights_only=True)
model = MLP(); optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
load_state_dict(model, checkpoint["s24"])
model.load_state_dict(checkpoint["model"]); optimizer.load_state_dict(checkpoint["optimizer"])
train(model, optimizer, Config(mask_interval=3), range(4, 8))
torch.save(model.state_dict(), sys.argv[1])
"""


def test_resume_bitwise_in_another_process(tmp_path):
    torch.manual_seed(0)
    model = MLP()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, FST, range(4))
    path = str(tmp_path / "checkpoint.pt")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "s24": state_dict(model)}, path)
    train(model, optimizer, FST, range(4, 8))
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", _RESUME.format(root=root), path], check=True, cwd=root)
    for name, parameter in torch.load(path, weights_only=True).items():
        assert torch.equal(parameter, model.state_dict()[name]), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_search_nothing_on_load(recipe):
    config = Config(recipe=recipe)
    model = MLP()
    sparse_forward(model, torch.randn(8, 16), config)
    other = copy.deepcopy(model)
    load_state_dict(other, state_dict(model))
    sparse_forward(other, torch.randn(8, 16), config)
    assert_same_state(state_dict(model), state_dict(other))
    assert sparse_weights(other)["up.weight"].flip_rate is None


def test_save_and_load_before_the_first_forward():
    model = MLP()
    assert state_dict(model) == {}
    load_state_dict(model, {})
    saved = state_dict(trained())
    load_state_dict(model, saved)
    assert sparse_weights(model) == {}
    assert_same_state(state_dict(model), saved)
    sparse_forward(model, torch.randn(8, 16), FST)
    assert sparse_weights(model)["up.weight"].steps == 4


def test_restore_in_place_into_a_live_model():
    model = trained(4)
    saved = state_dict(model)
    mask = sparse_weights(model)["up.weight"].mask.clone()
    train(model, torch.optim.SGD(model.parameters(), lr=1.0), FST, range(4, 12))
    assert not torch.equal(sparse_weights(model)["up.weight"].mask, mask)
    load_state_dict(model, saved)
    sparse_forward(model, torch.randn(8, 16), FST)
    assert torch.equal(sparse_weights(model)["up.weight"].mask, mask)
    assert_same_state(state_dict(model), saved)


def broken(how):
    state = state_dict(trained())
    up = state["up.weight"]
    if how == "foreign":
        state["other.weight"] = state.pop("up.weight")
    elif how == "prefixed":
        state = {f"_orig_mod.{name}": entry for name, entry in state.items()}
    elif how == "partial":
        del state["down.weight"]
    elif how == "extra":
        state["up.bias"] = dict(up)
    elif how == "shape":
        up["shape"] = [64, 16]
    elif how == "patterns":
        up["patterns"] = up["patterns"][:-1]
    elif how == "illegal codes":
        up["patterns"] = torch.full_like(up["patterns"], 200)
    elif how == "recipe":
        up["recipe"] = "ste"
    elif how == "field":
        del up["steps"]
    elif how == "unknown field":
        up["stepps"] = 1
    elif how == "type":
        state["down.weight"] = torch.zeros(3)
    elif how == "model's own":
        state = dict(MLP().state_dict())
    elif how == "scale":
        up["scale"] = torch.tensor(1.0)
    elif how == "negative":
        up["steps"] = -1
    elif how == "age":
        up["age"] = 10**6
    elif how == "phase_at":
        up["phase_at"] = 10**6
    elif how == "no patterns":
        del up["patterns"], up["previous"]
    elif how == "format":
        up["format"] = 99
    elif how == "format type":
        up["format"] = "2"
    elif how == "decay":
        up["decay"] = float("nan")
    return state


BROKEN = [
    "foreign", "prefixed", "partial", "extra", "shape", "patterns", "illegal codes", "recipe", "field", "unknown field",
    "type", "model's own", "scale", "negative", "age", "phase_at", "no patterns", "format", "format type", "decay",
]  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_refuse_a_broken_checkpoint_whole(how):
    state = broken(how)
    model = trained(5)
    before = state_dict(model)
    with pytest.raises(errors.CheckpointError, match="none of it was loaded"):
        load_state_dict(model, state)
    assert_same_state(state_dict(model), before)


@pytest.mark.parametrize("how", [how for how in BROKEN if how not in ("patterns", "illegal codes", "recipe", "scale")])
def test_refuse_a_broken_checkpoint_before_the_first_forward(how):
    model = MLP()
    with pytest.raises(errors.CheckpointError):
        load_state_dict(model, broken(how))
    assert state_dict(model) == {}
    sparse_forward(model, torch.randn(8, 16), FST)


@pytest.mark.parametrize("how", ["patterns", "illegal codes", "recipe", "scale"])
def test_refuse_at_the_first_forward_what_only_the_options_tell(how):
    model = MLP()
    load_state_dict(model, broken(how))
    with pytest.raises(errors.CheckpointError, match=r"up\.weight"):
        sparse_forward(model, torch.randn(8, 16), FST)


def test_refuse_at_the_first_forward_a_weight_that_the_checkpoint_left_out():
    only_up = MLP()
    sparse_linear(torch.randn(8, 16), only_up.up, FST, "up.weight")
    model = MLP()
    load_state_dict(model, state_dict(only_up))
    with pytest.raises(errors.CheckpointError, match=r"no entry for 'down\.weight'"):
        sparse_forward(model, torch.randn(8, 16), FST)


@pytest.mark.parametrize("how", ["left out", "patterns"])
def test_take_nothing_of_a_checkpoint_that_a_later_weight_refuses(how):
    donor = trained(5)
    saved, loaded_mask = state_dict(donor), sparse_weights(donor)["up.weight"].mask
    if how == "left out":
        del saved["down.weight"]
        saved["up.weight"]["weights"] = 1
    else:
        saved["down.weight"]["patterns"] = torch.full_like(saved["down.weight"]["patterns"], 200)
    model = MLP()
    load_state_dict(model, saved)
    set_phase(model, "sparse")
    for _ in range(2):
        with pytest.raises(errors.CheckpointError, match=r"none of it was loaded.*down\.weight"):
            sparse_forward(model, torch.randn(8, 16), FST)
        up = sparse_weights(model)["up.weight"]
        assert (up.steps, up.age) == (0, 0)
        assert not torch.equal(up.mask, loaded_mask), "the weight before it starts anew"
    assert torch.equal(up.mask, ops.transposable_mask(model.up.weight))
    whole = state_dict(trained(5))
    load_state_dict(model, whole)
    sparse_forward(model, torch.randn(8, 16), FST)
    assert_same_state(state_dict(model), whole)


def test_refuse_a_file_of_a_later_version_in_a_sentence():
    with pytest.raises(
        errors.CheckpointError, match=r"a later version of s24compile, in format 99, and this one reads"
    ):
        load_state_dict(trained(), broken("format"))


def test_read_a_file_of_the_first_format():
    saved, model = state_dict(trained()), MLP()
    for entry in saved.values():
        assert entry.pop("format") == 2
    load_state_dict(model, through_a_file(saved))
    sparse_forward(model, torch.randn(8, 16), FST)
    weight = sparse_weights(model)["up.weight"]
    assert (weight.steps, weight.decay) == (4, FST.decay)


@pytest.mark.parametrize("warm", [False, True])
def test_keep_a_decay_that_was_set_during_the_run(warm):
    donor, model = trained(), MLP()
    sparse_weights(donor)["up.weight"].decay = 1e-3
    saved = through_a_file(state_dict(donor))
    if warm:
        sparse_forward(model, torch.randn(8, 16), FST)
        sparse_weights(model)["down.weight"].decay = 0.5
    load_state_dict(model, saved)
    sparse_forward(model, torch.randn(8, 16), FST)
    weights = sparse_weights(model)
    assert (weights["up.weight"].decay, weights["down.weight"].decay) == (1e-3, FST.decay)
    assert_same_state(state_dict(model), saved)


def test_take_the_decay_of_the_options_where_none_was_set():
    model = MLP()
    load_state_dict(model, state_dict(trained()))
    sparse_forward(model, torch.randn(8, 16), Config(mask_interval=3, decay=0.25))
    assert sparse_weights(model)["up.weight"].decay == 0.25


def test_refuse_what_is_no_module():
    for function in (state_dict, sparse_weights, refresh, bake_):
        with pytest.raises(errors.ModelError, match=r"nn\.Module"):
            function(lambda x: x)


def dense_forward_happens(model, config=FST):
    with recorded_ops() as calls:
        sparse_forward(model, torch.randn(8, 16), config)
    return "linear" not in calls


def test_switch_phases_before_and_after_the_first_forward():
    model = MLP()
    set_phase(model, "dense")
    assert dense_forward_happens(model)
    assert sparse_weights(model)["up.weight"].phase == "dense"
    set_phase(model, "sparse")
    assert not dense_forward_happens(model)
    set_phase(model, "dense")
    assert dense_forward_happens(model)
    with pytest.raises(errors.OptionError, match="phase='sparce'"):
        set_phase(model, "sparce")


def test_save_a_phase_that_was_asked_for_since_the_state_was_loaded() -> None:
    donor, model = trained(4), MLP()
    load_state_dict(model, state_dict(donor))
    set_phase(model, "dense")
    again = MLP()
    load_state_dict(again, through_a_file(state_dict(model)))
    assert dense_forward_happens(model)
    assert dense_forward_happens(again)
    assert_same_state(state_dict(again), state_dict(model))


def test_warn_of_state_for_weights_that_train_dense(caplog: pytest.LogCaptureFixture) -> None:
    donor, model = trained(4), MLP()
    load_state_dict(model, state_dict(donor))
    compiled = torch.compile(model, backend="s24", options={"inner": "eager", "mask_interval": 3, "targets": "down"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        compiled(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    (said,) = [r.getMessage() for r in caplog.records if "state was loaded" in r.getMessage()]
    assert said.startswith("state was loaded for 1 weight(s) that train dense in this step")


def dense_forwards(config, steps):
    """Whether the forward of each step is dense."""
    model = MLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    dense = []
    for i in range(steps):
        dense.append(dense_forward_happens(model, config))
        train(model, optimizer, config, range(i, i + 1))
    return dense


def test_train_dense_from_the_forward_after_n_steps():
    assert dense_forwards(Config(mask_interval=3, dense_after=2), 4) == [False, False, True, True]
    always = MLP()
    set_phase(always, "sparse")
    assert dense_forward_happens(always, Config(dense_after=0)), "dense_after=0 is dense whatever set_phase says"


def test_train_dense_for_the_first_n_steps():
    config = Config(mask_interval=3, dense_until=2, dense_after=4)
    assert dense_forwards(config, 6) == [True, True, False, False, True, True]


def test_resume_in_a_dense_start_and_after_it():
    config = Config(mask_interval=3, dense_until=2)
    for steps, dense in ((1, True), (2, False), (3, False)):
        model = MLP()
        load_state_dict(model, state_dict(trained(steps, config)))
        assert dense_forward_happens(model, config) == dense


def step_another_model(steps: int) -> None:
    other = MLP()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for p in other.parameters():
        p.grad = torch.zeros_like(p)
    for _ in range(steps):
        optimizer.step()


@pytest.mark.parametrize("resumed_at", [None, 1, 3, 5])
def test_follow_the_steps_of_others_while_no_optimizer_holds_a_weight(resumed_at: int | None) -> None:
    config = Config(dense_until=2, dense_after=4)
    model, dense = MLP().requires_grad_(False), []
    for step in range(6):
        dense.append(dense_forward_happens(model, config))
        step_another_model(1)
        if step == resumed_at:
            saved, model = through_a_file(state_dict(model)), MLP().requires_grad_(False)
            load_state_dict(model, saved)
    assert dense == [True, True, False, False, True, True], "a frozen weight switches with the others"


def saved_and_loaded(model: MLP) -> MLP:
    """Another model, in the state of this one."""
    other = copy.deepcopy(model)
    load_state_dict(other, through_a_file(state_dict(model)))
    return other


@pytest.mark.parametrize("resumed_at", [None, 0, 2])
@pytest.mark.parametrize("others", [1, 5])
def test_count_own_steps_alone_once_an_optimizer_holds_a_weight(others: int, resumed_at: int | None) -> None:
    config = Config(mask_interval=3, dense_after=4)
    model, dense = MLP(), []
    assert not dense_forward_happens(model, config)
    step_another_model(others)  # as the discriminator's optimizer does
    set_phase(model, "sparse")
    for step in range(6):
        if step == resumed_at:
            model = saved_and_loaded(model)
        train(model, torch.optim.SGD(model.parameters(), lr=0.1), config, range(step, step + 1))
        dense.append(dense_forward_happens(model, config))
    assert dense == [False, False, False, True, True, True]
    assert sparse_weights(model)["up.weight"].steps == 6


def test_take_what_was_saved_where_others_went_on_stepping() -> None:
    config = Config(dense_until=10)
    model = saved_and_loaded(trained(3, config))
    assert dense_forward_happens(model, config)
    step_another_model(2)
    again = saved_and_loaded(model)
    assert dense_forward_happens(again, config)
    assert_same_state(state_dict(again), state_dict(model))


def test_let_set_phase_end_a_dense_start_or_put_its_end_off():
    config = Config(mask_interval=3, dense_until=2)
    early, late = MLP(), MLP()
    assert dense_forward_happens(early, config)
    set_phase(early, "sparse")
    assert not dense_forward_happens(early, config)
    set_phase(late, "dense")
    train(late, torch.optim.SGD(late.parameters(), lr=0.1), config, range(3))
    assert dense_forward_happens(late, config)
    set_phase(late, "sparse")
    assert not dense_forward_happens(late, config)


def test_return_to_sparse_training_after_a_dense_phase():
    config = Config(mask_interval=3, dense_after=2)
    model = trained(4, config)
    assert sparse_weights(model)["up.weight"].phase == "dense"
    set_phase(model, "sparse")
    assert not dense_forward_happens(model, config)
    assert torch.equal(
        sparse_weights(model)["up.weight"].mask, torch.ops.s24.transposable_mask(model.up.weight.detach())
    )


def test_resume_in_the_dense_phase_and_in_an_asked_one():
    config = Config(mask_interval=3, dense_after=2)
    model = MLP()
    load_state_dict(model, state_dict(trained(4, config)))
    assert dense_forward_happens(model, config)
    asked = trained(4)
    set_phase(asked, "dense")
    model = MLP()
    load_state_dict(model, state_dict(asked))
    assert dense_forward_happens(model)


@pytest.mark.parametrize("recipe", RECIPES)
def test_bake_what_the_model_computes_with(recipe):
    config = Config(recipe=recipe)
    model = trained(4, config)
    x = torch.randn(8, 16)
    before = sparse_forward(model, x, config)
    version = model.up.weight._version
    mask = sparse_weights(model)["up.weight"].mask.clone()
    bake_(model)
    assert model.up.weight._version > version
    assert torch.equal(sparse_weights(model)["up.weight"].mask, mask)
    assert bool((model.up.weight[~mask] == 0).all())
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(sparse_forward(model, x, config), before)
    baked = {name: p.clone() for name, p in model.state_dict().items()}
    bake_(model)
    assert all(torch.equal(p, baked[name]) for name, p in model.state_dict().items()), "baking twice is baking once"
    fresh = MLP()
    fresh.load_state_dict(baked)
    load_state_dict(fresh, state_dict(model))
    torch.testing.assert_close(sparse_forward(fresh, x, config), before)


BAKED = {
    "fst": Config(mask_interval=4),
    "fst-exact": Config(recipe="fst-exact"),
    "fst-down": Config(recipe="fst-down", targets="ffn"),
    "ste": Config(recipe="ste"),
    "ste-always": Config(recipe="ste", freshness="always"),
    "sste": Config(recipe="sste"),
    "srste": Config(recipe="srste"),
}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("steps", [3, 4])  # under "fst" no search is due, and one is
@pytest.mark.parametrize("name", BAKED)
def test_bake_after_a_step_what_the_next_forward_would_compute_with(name: str, steps: int, resumed: bool) -> None:
    config = BAKED[name]
    model = MLP()
    train(model, torch.optim.SGD(model.parameters(), lr=0.5), config, range(steps))
    x = torch.randn(8, 16)
    if resumed:
        live = MLP()
        sparse_forward(live, x, config)
        live.load_state_dict(model.state_dict())
        load_state_dict(live, through_a_file(state_dict(model)))
        model = live
    twin = saved_and_loaded(model)
    before = sparse_forward(twin, x, config)
    searched = {n: w.mask.clone() for n, w in sparse_weights(twin).items()}
    bake_(model)
    assert all(torch.equal(w.mask, searched[n]) for n, w in sparse_weights(model).items())
    torch.testing.assert_close(model(x), before)
    torch.testing.assert_close(sparse_forward(model, x, config), before)


def test_find_the_same_sparsity_in_baked_weights_without_the_state():
    model = trained()
    x = torch.randn(8, 16)
    before = sparse_forward(model, x, FST)
    bake_(model)
    fresh = MLP()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(sparse_forward(fresh, x, FST), before)


def test_refuse_to_bake_dense_or_unknown_weights():
    with pytest.raises(errors.ModelError, match="no sparse weights"):
        bake_(MLP())
    model = trained()
    before = model.up.weight.clone()
    set_phase(model, "dense")
    with pytest.raises(errors.ModelError, match="dense phase"):
        bake_(model)
    assert torch.equal(model.up.weight, before)


def test_search_anew_when_refresh_is_told_to():
    model = trained()
    model.up.weight.data.copy_(torch.randn(32, 16))
    refresh(model)
    weight = sparse_weights(model)["up.weight"]
    best = torch.ops.s24.transposable_mask(model.up.weight.detach())
    assert not torch.equal(weight.mask, best)
    refresh(model, search=True)
    assert torch.equal(weight.mask, best)


def test_refresh_before_the_first_forward_is_no_mistake():
    refresh(MLP())


@pytest.mark.parametrize("state", [5, None, ["c_fc.weight"]])
def test_refuse_a_state_that_is_no_mapping(state):
    with pytest.raises(errors.CheckpointError, match="it is a"):
        load_state_dict(nn.Linear(4, 4), state)
