"""The recipes as a user gets them: torch.compile(backend="s24"), a plain optimizer, and nothing else in the loop.

Legend: T tokens, D model width, F hidden width.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import s24compile
from s24compile import errors
from s24compile.config import Config
from s24compile.training.flip_rate import global_flip_rate

pytestmark = pytest.mark.usefixtures("on_device")

ROW_WISE = ["sste", "ste", "srste", "step"]


def ffn(width=16, hidden=64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def compiled_with(model, inner="aot_eager", **options):
    # Toy shapes pay on no GPU.
    return torch.compile(model, backend="s24", options={"inner": inner, "min_speedup": 0.0, **options})


def forward_with(model, x, masks):
    """The forward in plain torch, with masked weights where there are masks."""
    up, _, down = model
    weights = [layer.weight * masks.get(f"{i}.weight", 1) for i, layer in ((0, up), (2, down))]
    return F.linear(F.gelu(F.linear(x, weights[0], up.bias)), weights[1], down.bias)


def masks_of(model):
    return {name: weight.mask for name, weight in s24compile.sparse_weights(model).items()}


def train_one(compiled, model, optimizer, step):
    x = torch.randn(32, 16, generator=torch.Generator(model[0].weight.device).manual_seed(step))
    (compiled(x) - x.flip(-1)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_end_fst_dense_for_the_last_sixth():
    model = ffn()
    compiled = compiled_with(model, total_steps=12, mask_interval=3, decay=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(8, 16)
    phases = []
    for step in range(12):
        found, sparse = compiled(x), forward_with(model, x, masks_of(model))
        dense = forward_with(model, x, {})
        # Two legal orders of summation over 64 products of order one: far below what half of the weights is worth.
        close = [torch.allclose(found, wanted, atol=1e-5) for wanted in (sparse, dense)]
        phases.append({(True, False): "sparse", (False, True): "dense"}[tuple(close)])
        assert {w.phase for w in s24compile.sparse_weights(model).values()} == {phases[-1]}
        train_one(compiled, model, optimizer, step)
    assert phases == ["sparse"] * 10 + ["dense"] * 2
    weights = s24compile.sparse_weights(model)
    rates = [weight.flip_rate for weight in weights.values()]
    assert all(rate is not None and 0 <= rate <= 1 for rate in rates)
    assert global_flip_rate(list(weights.values())) == pytest.approx(sum(rates) / 2), "two weights of one size"


def test_decay_pruned_weights_in_the_sparse_phase_alone():
    model = ffn()
    compiled = compiled_with(model, decay=0.25, gradient="dense", dense_after=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for phase in ("sparse", "dense"):
        compiled(torch.randn(8, 16)).square().sum().backward()
        before = {name: (p.detach().clone(), p.grad.clone()) for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        masks = masks_of(model)
        for name, parameter in model.named_parameters():
            old, grad = before[name]
            pruned = ~masks[name] if name in masks and phase == "sparse" else torch.zeros_like(old, dtype=torch.bool)
            torch.testing.assert_close(parameter.detach(), old - grad - 0.25 * pruned * old)


def test_warn_in_words_when_flip_rates_explode(caplog):
    model = ffn(16, 32)
    compiled = compiled_with(model, decay=0.0, mask_interval=1, inner="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with caplog.at_level(logging.WARNING, logger="s24compile"):
        for i in range(40 * 17):
            compiled(torch.randn(4, 16)).sum().backward()
            for parameter in model.parameters():
                # From calm to chaos: the share of the weights that is drawn anew grows.
                noise = parameter.detach() - torch.randn_like(parameter)
                parameter.grad = torch.where(torch.rand_like(parameter) < i / 700, noise, 0.0)
            optimizer.step()
    said = [record.getMessage() for record in caplog.records]
    assert said
    assert "flip-rate explosion" in said[0]
    assert "0.weight" in said[0] or "2.weight" in said[0]
    assert sum(text.count("0.weight") for text in said) <= 1, "once a weight"


def input_gradients(recipe, input_gradient, draws, inner="aot_eager"):
    """dX of `draws` backward passes of one batch, [draws, T, D]; the weight gradient is dense, and so exact."""
    model = ffn()
    compiled = compiled_with(model, inner, recipe=recipe, input_gradient=input_gradient, gradient="dense")
    x = torch.randn(8, 16, requires_grad=True)
    found = []
    for _ in range(draws):
        x.grad = None
        compiled(x).square().sum().backward()
        found.append(x.grad.clone())
    return torch.stack(found)


@pytest.mark.parametrize("recipe", ROW_WISE)
def test_estimate_the_input_gradient_without_bias(recipe):
    exact = input_gradients(recipe, "dense", 2)
    assert torch.equal(exact[0], exact[1]), "nothing is drawn"
    drawn = input_gradients(recipe, "mvue", 400)
    assert not torch.equal(drawn[0], drawn[1])
    error = drawn.std(0) / 400**0.5
    # 128 elements, 5 standard errors: a false alarm in 14,000 runs. fp32 rounding is the floor.
    assert bool(((drawn.mean(0) - exact[0]).abs() <= 5 * error + 1e-5).all())


@pytest.mark.parametrize("recipe", ROW_WISE)
def test_default_to_the_dense_input_gradient(recipe):
    assert torch.equal(input_gradients(recipe, "auto", 1), input_gradients(recipe, "dense", 1))


def test_compile_all_three_gemms_sparse_with_inductor():
    drawn = input_gradients("ste", "mvue", 3, inner="inductor")
    assert not torch.equal(drawn[0], drawn[1]), "each backward draws anew"
    assert bool(torch.isfinite(drawn).all())


def test_need_no_packed_transpose_for_row_wise_recipes():
    model = ffn()
    compiled = compiled_with(model, recipe="ste", input_gradient="mvue")
    compiled(torch.randn(8, 16, requires_grad=True)).sum().backward()
    from s24compile.weights.operand_map import operands_of

    assert all(not operand.transposed for p in model.parameters() for operand in operands_of(p))


@pytest.mark.parametrize("recipe", ["sste", "ste"])
def test_learn_with_all_three_gemms_sparse(recipe):
    losses = {}
    for input_gradient in ("dense", "mvue"):
        model = ffn()
        compiled = compiled_with(model, recipe=recipe, input_gradient=input_gradient)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        x = torch.randn(64, 16)
        for _ in range(80):
            loss = (compiled(x) - x.flip(-1)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[input_gradient] = loss.item()
    # The target has variance one; what both learn is the task, not the noise of their gradients.
    assert losses["dense"] < 0.5
    assert losses["mvue"] < 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": -1e-5}, "decay"),
        ({"decay": float("inf")}, "decay"),
        ({"decay": "much"}, "decay"),
        ({"mask_interval": 0}, "mask_interval"),
        ({"mask_interval": 2.5}, "mask_interval"),
        ({"mask_interval": True}, "mask_interval"),
        ({"dense_after": -1}, "dense_after"),
        ({"total_steps": 0}, "total_steps"),
        ({"dense_after": 11, "total_steps": 10}, "total_steps=10"),
        ({"dense_until": -1}, "dense_until"),
        ({"dense_until": 500, "total_steps": 600}, "before step 500"),
        ({"recipe": "sste", "dense_until": 600, "total_steps": 600}, "before step 600"),
        ({"recipe": "fst-down", "dense_after": 10, "total_steps": 60}, "starts dense for the first 10 of 60 steps"),
        ({"recipe": "ftsst"}, "'fst', 'fst-exact', 'fst-down', 'sste'"),
        ({"decay": None}, "decay"),
        ({"gradient": "sparse"}, "'mvue', 'auto', 'dense'"),
        ({"recipe": "ste", "input_gradient": "sparse"}, "'auto', 'dense', 'mvue'"),
        ({"recipe": "fst", "input_gradient": "mvue"}, "transposable"),
        ({"recipe": "fst", "input_gradient": "dense"}, "transposable"),
        ({"recipe": "fst-exact", "input_gradient": "mvue"}, "transposable"),
    ],
)
def test_refuse_options_by_name_value_and_what_is_accepted(options, said):
    name = [name for name in options if name not in ("recipe", "total_steps")] or list(options)
    with pytest.raises(errors.OptionError, match=said) as caught:
        Config.from_options(options)
    assert f"option {name[0]}={options[name[0]]!r}" in str(caught.value)
    model = ffn()
    with pytest.raises(errors.OptionError, match=said):
        compiled_with(model, **options)(torch.randn(8, 16))
    assert not s24compile.sparse_weights(model), "nothing has changed"


def test_name_the_nearest_option_however_a_config_is_made():
    wrong = {"recip": "fst"}
    for make in (Config, lambda **_: Config.from_options(wrong), lambda **_: dataclasses.replace(Config(), **wrong)):
        with pytest.raises(errors.UnknownOptionError, match=r"'recip' \(did you mean 'recipe'\?\)"):
            make(**wrong)
    with pytest.raises(errors.UnknownOptionError, match="unknown option 3"):
        Config.from_options({3: 1})


def test_keep_a_config_the_dataclass_that_it_is():
    config = Config(recipe="sste", decay=0.1)
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert dataclasses.replace(config, recipe="fst") == Config(decay=0.1, gradient=config.gradient)
    assert tuple(inspect.signature(Config).parameters) == tuple(field.name for field in dataclasses.fields(Config))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reorder_for_compute_comm_overlap_passes", ["raise_comms"]),
        ("post_grad_fusion_options", {"batch_linear": {"min_fuse_set_size": [2]}}),
        ("_micro_pipeline_tp", {"a", "b"}),
        ("post_grad_custom_pre_pass", print),
    ],
)
def test_hash_a_config_whatever_its_inner_options_hold(name, value):
    config, same = (Config(inner_options={name: copy.deepcopy(value)}) for _ in range(2))
    assert (config, hash(config)) == (same, hash(same))
    assert config != Config()
    assert dict(config.inner_options)[name] == value, "Inductor gets what was given"


def test_take_what_is_not_given_from_the_recipe():
    def own(**options):
        config = Config(**options)
        return config.targets, config.gradient, config.decay, config.mask_interval

    assert own() == own(recipe="fst") == ("ffn", "mvue", 6e-5, 40), "as published"
    assert own(recipe="fst-exact") == ("ffn", "dense", 6e-5, 1)
    assert own(recipe="fst-exact", gradient="auto", decay=0.0, mask_interval=7) == ("ffn", "auto", 0.0, 7)
    assert own(recipe="fst-down") == ("down", "dense", 6e-5, 1)
    assert own(recipe="fst-down", targets="linear") == ("linear", "dense", 6e-5, 1)
    assert own(recipe="srste")[2] == 2e-4
    spelled = Config(targets="ffn", gradient="mvue", decay=6e-5, mask_interval=40)
    assert (Config(), hash(Config())) == (spelled, hash(spelled)), "one backend to Dynamo"


@pytest.mark.parametrize(("recipe", "taken"), [("fst-exact", ["0.weight", "2.weight"]), ("fst-down", ["2.weight"])])
def test_give_weights_their_exact_gradient_and_new_masks_at_each_step(recipe: str, taken: list[str]) -> None:
    """They are masked dense arithmetic: the forward and every gradient are those of M.W, on pruned weights too."""
    model = ffn()
    compiled = compiled_with(model, recipe=recipe, decay=0.0, total_steps=12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(12):
        x = torch.randn(32, 16, generator=torch.Generator(model[0].weight.device).manual_seed(step))
        compiled(x).square().mean().backward()
        masks = masks_of(model)
        assert sorted(masks) == taken
        for name, weight in s24compile.sparse_weights(model).items():
            assert weight.phase == ("sparse" if 2 <= step < 10 else "dense")
            now = torch.ops.s24.transposable_mask(model.get_parameter(name).detach())
            assert weight.phase == "dense" or torch.equal(masks[name], now), "searched at this step"
        found = [p.grad for p in model.parameters()]
        optimizer.zero_grad()
        masked = {n: (p * masks[n] if 2 <= step < 10 and n in masks else p) for n, p in model.named_parameters()}
        leaves = {n: p.detach().requires_grad_() for n, p in masked.items()}
        torch.func.functional_call(model, leaves, (x,)).square().mean().backward()
        # dW is that of M.W, and reaches pruned weights as it is.
        for grad, leaf in zip(found, leaves.values(), strict=True):
            torch.testing.assert_close(grad, leaf.grad, rtol=1e-4, atol=1e-6)
        for parameter, grad in zip(model.parameters(), found, strict=True):
            parameter.grad = grad
        optimizer.step()
        optimizer.zero_grad()


def test_start_dense_for_the_first_sixth_where_the_recipe_does():
    assert Config(recipe="fst-exact", total_steps=600).sparse_from == 100
    assert Config(recipe="fst-down", total_steps=600).sparse_from == 100
    assert Config(recipe="fst-exact").sparse_from == 0, "a sixth of what?"
    assert Config(recipe="fst-exact", total_steps=600, dense_until=0).sparse_from == 0
    assert Config(total_steps=600).sparse_from == 0, "fst is as published"
    assert Config(recipe="sste", dense_until=7).sparse_from == 7
    assert Config(recipe="fst-exact", total_steps=5).sparse_from == 0, "a sixth of five steps is none"


def test_take_a_tail_of_any_length_from_zero_to_all():
    assert Config(total_steps=600).dense_from == 500
    assert Config(recipe="fst-exact", total_steps=600).dense_from == 500
    assert Config(recipe="fst-down", total_steps=600).dense_from == 500
    assert Config(total_steps=5).dense_from == 5, "a sixth of five steps is none"
    assert Config(total_steps=10, dense_after=10).dense_from == 10
    assert Config(total_steps=10, dense_after=0).dense_from == 0
    assert Config(recipe="sste", total_steps=600).dense_from is None, "the tail belongs to fst and what is made of it"
    assert Config(recipe="sste", dense_after=7).dense_from == 7


@pytest.mark.parametrize("forwards", [0, 1], ids=["before the first forward", "after it"])
@pytest.mark.parametrize("change", ["recipe", "missing weight", "extra weight"])
def test_refuse_to_resume_what_is_another_run(change, forwards):
    model = ffn()
    compiled = compiled_with(model)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(3):
        train_one(compiled, model, optimizer, step)
    state = s24compile.state_dict(model)
    other = ffn()
    again = compiled_with(other, recipe="sste" if change == "recipe" else "fst")
    for _ in range(forwards):
        again(torch.randn(8, 16))
    if change == "missing weight":
        del state["0.weight"]
    elif change == "extra weight":
        state["4.weight"] = state["0.weight"]
    before = {name: weight.mask for name, weight in s24compile.sparse_weights(other).items()}

    def resume():
        s24compile.load_state_dict(other, state)
        again(torch.randn(8, 16))  # the recipe of weights that never ran is known only here

    with pytest.raises(errors.CheckpointError) as caught:
        resume()
    assert {"recipe": "'fst'", "missing weight": "weight", "extra weight": "4.weight"}[change] in str(caught.value)
    after = s24compile.sparse_weights(other)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name].mask, mask) and after[name].steps == 0 for name, mask in before.items())
