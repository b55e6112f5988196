"""AdamW_STEP: phase 1 is AdamW, the switch is the paper's, phase 2 freezes the variance, a checkpoint holds it all."""

from __future__ import annotations

import copy
import io
import logging
import math

import pytest
import torch
from torch import nn

from s24compile import errors
from s24compile.config import Config
from s24compile.training import step as step_module
from s24compile.training.step import AdamW_STEP
from s24compile.weights.model_state import load_state_dict, set_phase, sparse_weights, state_dict
from tests.freshening import MLP, recorded_ops, sparse_forward, train

STEP = Config(recipe="step")


def parameter_and(total_steps=20, **options):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(8, 8, dtype=torch.float64))
    options = {"lr": 0.1, "betas": (0.9, 0.75), "weight_decay": 0.1} | options
    return parameter, AdamW_STEP([parameter], total_steps=total_steps, **options)


def grads(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 8, dtype=torch.float64, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("maximize", [False, True])
def test_be_adamw_in_phase_one(maximize):
    parameter, optimizer = parameter_and(threshold=0.0, clip=(0.5, 1.0), maximize=maximize)
    twin = nn.Parameter(parameter.detach().clone())
    adamw = torch.optim.AdamW([twin], lr=0.1, betas=(0.9, 0.75), weight_decay=0.1, maximize=maximize)
    for grad in grads(10):
        parameter.grad, twin.grad = grad.clone(), grad.clone()
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(parameter, twin, rtol=1e-12, atol=1e-12)
    assert optimizer.phase == "dense"


def switch_of_the_formula(criterion, threshold, t_min, t_max, window, beta2, count):
    """Algorithm 2 of the paper, written down plainly."""
    v = torch.zeros(8, 8, dtype=torch.float64)
    seen = []
    for t, grad in enumerate(grads(count), start=1):
        before, v = v, beta2 * v + (1 - beta2) * grad * (0.8 ** (2 * t)) * grad
        change = (v - before).abs()
        seen.append(float(change.mean()) if criterion == "mean" else math.exp(float(change.log().mean())))
        last = seen[-window:]
        if t >= t_max or (t >= t_min and len(last) == window and sum(last) / window < threshold):
            return t
    return None


@pytest.mark.parametrize("criterion", ["mean", "geometric_mean"])
@pytest.mark.parametrize(("threshold", "expected"), [(1e-3, "within"), (10.0, "at T_min"), (0.0, "at T_max")])
def test_switch_when_the_variance_has_settled(criterion, threshold, expected):
    # beta2 = 0.75: a window of 4 steps. Gradients shrink, so that v does settle.
    parameter, optimizer = parameter_and(40, threshold=threshold, clip=(0.15, 0.75), criterion=criterion)
    for t, grad in enumerate(grads(40), start=1):
        parameter.grad = grad * 0.8**t
        optimizer.step()
    reference = switch_of_the_formula(criterion, threshold, 6, 30, 4, 0.75, 40)
    assert optimizer.switched_at == reference
    assert {"at T_min": reference == 6, "at T_max": reference == 30, "within": 6 < reference < 30}[expected]


@pytest.mark.parametrize(
    ("clip", "total_steps", "bounds"),
    [
        ((0.07, 0.29), 100, (7, 29)),  # whole, but not in floats
        ((0.1, 0.5), 15, (2, 7)),
        ((0.0, 0.0), 15, (0, 1)),
        ((0.55, 0.58), 100, (55, 58)),
    ],
)
def test_take_whole_steps_within_the_fractions(clip: tuple[float, float], total_steps: int, bounds: tuple[int, int]):
    group = parameter_and(total_steps, clip=clip)[1].param_groups[0]
    assert (group["t_min"], group["t_max"]) == bounds


@pytest.mark.parametrize("denominator", ["sqrt(v)+eps", "sqrt(v+eps)", "sqrt(v)+eps**0.75"])
def test_freeze_the_variance_in_phase_two(denominator):
    eps = 1e-3
    parameter, optimizer = parameter_and(
        20, threshold=0.0, clip=(0.1, 0.25), denominator=denominator, eps=eps, weight_decay=0.1
    )
    w, m, v = parameter.detach().clone(), torch.zeros(8, 8).double(), torch.zeros(8, 8).double()
    for t, grad in enumerate(grads(12), start=1):
        parameter.grad = grad.clone()
        optimizer.step()
        m = 0.9 * m + 0.1 * grad
        frozen = t > 5
        if not frozen:
            v = 0.75 * v + 0.25 * grad**2
        v_hat = v / (1 - 0.75 ** min(t, 5))
        below = {
            "sqrt(v)+eps": v_hat.sqrt() + eps,
            "sqrt(v+eps)": (v_hat + eps).sqrt(),
            "sqrt(v)+eps**0.75": v_hat.sqrt() + eps**0.75,
        }[denominator if frozen else "sqrt(v)+eps"]
        w = w * (1 - 0.1 * 0.1) - 0.1 * (m / (1 - 0.9**t)) / below
        torch.testing.assert_close(parameter.detach(), w, rtol=1e-10, atol=1e-12)
    assert optimizer.switched_at == 5


def test_damp_elements_that_had_no_variance_at_the_switch() -> None:
    moves = {}
    for denominator in ("default", "sqrt(v)+eps"):
        options = {} if denominator == "default" else {"denominator": denominator}
        parameter, optimizer = parameter_and(10, threshold=0.0, clip=(0.1, 0.2), weight_decay=0.0, **options)
        for step in range(3):
            # Two steps without a gradient, as a rare token's embedding has them; then a usual one.
            parameter.grad = torch.full_like(parameter, 1e-3 if step == 2 else 0.0)
            before = parameter.detach().clone()
            optimizer.step()
        assert optimizer.switched_at == 2
        moves[denominator] = (parameter.detach() - before).abs().max().item() / 0.1
    assert moves["default"] < 10, "in learning rates; a gradient of 1e-3 is ten times sqrt(eps)"
    assert moves["sqrt(v)+eps"] > 1e4


def test_keep_adapting_parameters_that_join_after_the_switch():
    parameter, optimizer = parameter_and(10, threshold=0.0, clip=(0.1, 0.2))
    late = nn.Parameter(torch.randn(4, dtype=torch.float64))
    for grad in grads(3):
        parameter.grad = grad
        optimizer.step()
    optimizer.add_param_group({"params": [late]})
    twin = nn.Parameter(late.detach().clone())
    adamw = torch.optim.AdamW([twin], lr=0.1, betas=(0.9, 0.75), weight_decay=0.1)
    for i in range(4):
        late.grad, twin.grad = torch.full((4,), 1.0 + i).double(), torch.full((4,), 1.0 + i).double()
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(late, twin, rtol=1e-12, atol=1e-12)


def is_sparse(model):
    with recorded_ops() as calls:
        sparse_forward(model, torch.randn(8, 16), STEP)
    return "linear" in calls


def test_drive_the_phases_of_the_weights():
    model = MLP()
    optimizer = AdamW_STEP(model.parameters(), total_steps=10, clip=(0.1, 0.3), threshold=0.0)
    sparse = []
    for i in range(5):
        sparse.append(is_sparse(model))
        train(model, optimizer, STEP, range(i, i + 1))
    assert sparse == [False, False, False, True, True]
    set_phase(model, "dense")
    assert not is_sparse(model), "the user's word goes over the optimizer's"


def test_drive_only_weights_of_recipe_step():
    model = MLP()
    AdamW_STEP(model.parameters(), total_steps=10)
    sparse_forward(model, torch.randn(8, 16), Config(recipe="ste"))
    assert sparse_weights(model)["up.weight"].phase == "sparse"


def test_say_that_another_optimizer_makes_step_into_ste(caplog):
    model = MLP()
    optimizer = torch.optim.AdamW(model.parameters())
    with caplog.at_level(logging.WARNING, logger="s24compile"):
        train(model, optimizer, STEP, range(3))
    assert ["AdamW_STEP" in record.getMessage() for record in caplog.records] == [True]
    assert is_sparse(model)


@pytest.mark.parametrize("split", [2, 4, 6, 8])
def test_resume_bitwise_in_either_phase(split):
    def fresh():
        torch.manual_seed(0)
        model = MLP()
        # The window is 4 steps, and the threshold is met in the middle of the run.
        return model, AdamW_STEP(
            model.parameters(), lr=1e-2, betas=(0.9, 0.75), total_steps=12, clip=(0.3, 0.6), threshold=1.0
        )

    model, optimizer = fresh()
    losses = train(model, optimizer, STEP, range(10))
    half, half_optimizer = fresh()
    train(half, half_optimizer, STEP, range(split))
    file = io.BytesIO()
    torch.save((half.state_dict(), half_optimizer.state_dict(), state_dict(half)), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = MLP()
    resumed_optimizer = AdamW_STEP(resumed.parameters(), total_steps=1000)
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    load_state_dict(resumed, saved[2])
    assert torch.equal(train(resumed, resumed_optimizer, STEP, range(split, 10)), losses[split:])
    assert resumed_optimizer.switched_at == optimizer.switched_at == 4
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    "options",
    [
        {"clip": (0.6, 0.5)}, {"clip": 3}, {"clip": (0.1,)}, {"clip": ("a", "b")}, {"criterion": "median"},
        {"denominator": "v"}, {"betas": (0.9, 1.0)}, {"betas": 0.9}, {"betas": (0.9,)}, {"betas": ("a", 0.9)},
        {"total_steps": 0}, {"total_steps": 2.5}, {"total_steps": "ten"}, {"total_steps": True}, {"lr": -1.0},
        {"lr": "fast"}, {"lr": None}, {"lr": torch.zeros(2)}, {"eps": "x"}, {"eps": math.nan}, {"weight_decay": "x"},
        {"threshold": "x"}, {"threshold": -1},
    ],
)  # fmt: skip
def test_refuse_options_of_another_type_or_out_of_range(options):
    with pytest.raises(errors.OptionError, match=next(iter(options))):
        AdamW_STEP([nn.Parameter(torch.zeros(4, 4))], **({"total_steps": 10} | options))


def test_refuse_the_state_of_another_optimizer_whole():
    parameter, optimizer = parameter_and(20)
    parameter.grad = grads(1)[0]
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(errors.CheckpointError, match="t_min"):
        optimizer.load_state_dict(torch.optim.AdamW([nn.Parameter(torch.zeros(8, 8))]).state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for name, value in before["state"][0].items():
        assert torch.equal(torch.as_tensor(after["state"][0][name]), torch.as_tensor(value)), name


@pytest.mark.parametrize("copied", [False, True])
def test_take_a_checkpoint_as_often_as_it_is_given(copied: bool) -> None:
    parameter, optimizer = parameter_and(20)
    parameter.grad = grads(1)[0]
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    if copied:
        optimizer = copy.deepcopy(optimizer)
    for _ in range(2):
        optimizer.load_state_dict(saved)
        assert optimizer.param_groups[0]["steps"] == 1


def test_want_no_more_of_a_checkpoint_than_a_new_optimizer_has() -> None:
    assert set(step_module._FIELDS) == set(parameter_and()[1].defaults)


def test_refuse_a_checkpoint_without_groups() -> None:
    with pytest.raises(errors.CheckpointError, match="no 'state'"):
        parameter_and()[1].load_state_dict({})
