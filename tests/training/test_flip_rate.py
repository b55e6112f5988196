"""Flip rates over several weights, and when a history of them is called an explosion."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from s24compile.config import Config
from s24compile.training.flip_rate import flip_rates, global_flip_rate, is_exploding
from s24compile.weights.packing import freshen
from s24compile.weights.registry import WEIGHTS
from tests.freshening import operand_of

EACH_STEP = Config(mask_interval=1, decay=0.0)


def test_rate_several_weights_and_all_elements_together():
    small, large = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(16, 32))
    optimizer = torch.optim.SGD([small, large], lr=1.0)
    weights = []
    for parameter in (small, large):
        freshen(operand_of(parameter, config=EACH_STEP), False)
        weights.append(WEIGHTS.get(parameter))
    assert flip_rates(weights) == [None, None]
    assert global_flip_rate(weights) is None
    before = [weight.mask.clone() for weight in weights]
    small.grad, large.grad = torch.randn_like(small), torch.zeros_like(large)
    optimizer.step()
    for parameter in (small, large):
        freshen(operand_of(parameter, config=EACH_STEP), False)
    changed = int((before[0] != weights[0].mask).sum())
    assert flip_rates(weights) == pytest.approx([changed / 64, 0.0])
    assert global_flip_rate(weights) == pytest.approx(changed / (64 + 512))


@pytest.mark.parametrize(
    ("rates", "exploding"),
    [
        ([0.4] * 13 + [0.41], False),  # start-up and too short
        ([0.05] * 10 + [0.2] * 5, False),  # grows, yet most of the mask is remembered
        ([0.45] * 10 + [0.4] * 5, False),  # large, yet falling
        ([0.2] * 10 + [0.3] * 5, True),
    ],
)
def test_call_only_a_large_and_growing_rate_an_explosion(rates, exploding):
    assert is_exploding(rates) is exploding


def test_expect_less_change_where_masks_are_searched_more_often():
    rates = [0.05] * 10 + [0.06] * 5
    assert [is_exploding(rates, interval) for interval in (1, 2, 40, 1000)] == [True, True, False, False]
    assert not is_exploding([0.012] * 10 + [0.013] * 5, 1), "the peak of a healthy run"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (Config(recipe="sste"), "'sste' has none"),
        (Config(recipe="srste"), "raise decay"),
        (Config(mask_interval=2), "mask_interval=2"),
    ],
)
def test_advise_what_the_recipe_has(config, said, caplog):
    parameter = nn.Parameter(torch.randn(32, 32))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    found = operand_of(parameter, config=config, transpose=config.recipe == "fst")
    with caplog.at_level(logging.WARNING, logger="s24compile"):
        for i in range(40 * 18):
            freshen(found, config.recipe == "fst")
            # From calm to chaos: the share of the weights that is drawn anew grows.
            parameter.grad = torch.where(torch.rand(32, 32) < i / 700, parameter.detach() - torch.randn(32, 32), 0.0)
            optimizer.step()
    assert len(caplog.records) == 1
    assert said in caplog.records[0].getMessage()


def test_warn_once_in_words(caplog):
    parameter = nn.Parameter(torch.randn(32, 32))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    found = operand_of(parameter, config=EACH_STEP, names=("blocks.3.up.weight",))
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, logger="s24compile"):
        for i in range(40 * 20):
            freshen(found, False)
            # From calm to chaos: the share of the weights that is drawn anew grows.
            parameter.grad = torch.where(torch.rand(32, 32) < i / 800, parameter.detach() - torch.randn(32, 32), 0.0)
            optimizer.step()
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 1
    assert "flip-rate explosion" in texts[0]
    assert "blocks.3.up.weight" in texts[0]


def test_stay_silent_while_training_calms_down(caplog):
    parameter = nn.Parameter(torch.randn(32, 32))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    found = operand_of(parameter, config=EACH_STEP)
    with caplog.at_level(logging.WARNING, logger="s24compile"):
        for i in range(40 * 16):
            freshen(found, False)
            parameter.grad = torch.randn(32, 32) * 10 / (1 + i)
            optimizer.step()
    assert caplog.records == []
