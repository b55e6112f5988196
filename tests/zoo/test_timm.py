"""Unmodified models and layers of `timm`: the layers that a reader lists, one graph, and the right numbers.

Where timm is not installed, test_timm_spellings.py tests its layers as its source spells them.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm", reason='timm is not installed: pip install -e ".[zoo]"')

from timm.layers import GluMlp

from tests.zoo.case import Case, D, F
from tests.zoo.checks import (
    assert_listed_by_hand,
    assert_takes_down_projections,
    assert_trains_like_masked,
    explain_case,
)
from tests.zoo.table import assert_in_the_docs
from tests.zoo.timm_models import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_find_the_layers_that_a_reader_lists(name: str, device: str) -> None:
    report = explain_case(MODELS[name], device)
    assert_listed_by_hand(MODELS[name], report)
    assert_in_the_docs(name, "timm", report)


@pytest.mark.parametrize("name", MODELS)
def test_take_the_down_projections_alone(name: str, device: str) -> None:
    assert_takes_down_projections(MODELS[name], device)


@pytest.mark.parametrize("name", MODELS)
def test_train_like_masked_arithmetic(name: str, device: str) -> None:
    assert_trains_like_masked(MODELS[name], device)


@pytest.mark.parametrize("name", ["ViT", "DeiT"])
def test_train_like_masked_arithmetic_under_checkpointing(name: str, device: str) -> None:
    assert_trains_like_masked(MODELS[name], device, lambda model: model.set_grad_checkpointing())


def test_refuse_a_gate_that_is_no_activation_of_ours(device: str) -> None:
    """GluMlp's default gate is a sigmoid."""
    case = Case(lambda dropout: GluMlp(D, F), lambda: {"x": torch.randn(2, 8, D)}, (), (("", "sigmoid"),))
    assert_listed_by_hand(case, explain_case(case, device))
