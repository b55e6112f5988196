"""Unmodified models of `transformers`: the layers that a reader lists, no extra graph break, and the right numbers."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", "5.20", reason='transformers 5.20 is not installed: pip install -e ".[zoo]"')

from tests.zoo.checks import (
    assert_listed_by_hand,
    assert_takes_down_projections,
    assert_trains_like_masked,
    count_graphs_of_eager,
    explain_case,
    explain_forced,
    placed,
)
from tests.zoo.hugging_face import MODELS
from tests.zoo.table import assert_in_the_docs


@pytest.mark.parametrize("name", MODELS)
def test_find_the_layers_that_a_reader_lists(name: str, device: str) -> None:
    report = explain_case(MODELS[name], device)
    assert_listed_by_hand(MODELS[name], report)
    assert_in_the_docs(name, "transformers", report)
    assert all(site.source.startswith("transformers/models/") for site in report.sites), "not a line of the model"


@pytest.mark.parametrize("name", MODELS)
def test_take_the_down_projections_alone(name: str, device: str) -> None:
    assert_takes_down_projections(MODELS[name], device)


@pytest.mark.parametrize("name", MODELS)
def test_train_like_masked_arithmetic(name: str, device: str) -> None:
    assert_trains_like_masked(MODELS[name], device)


def test_break_no_graph_that_eager_keeps_whole(device: str) -> None:
    """With labels GPT-2 logs a warning once, where Dynamo breaks the graph; the layers are all before it."""
    model, inputs = placed(MODELS["GPT-2"], device, dropout=True)
    inputs["labels"] = inputs["input_ids"]
    graphs = count_graphs_of_eager(model, inputs)
    torch._dynamo.reset()
    report = explain_forced(model, **inputs)
    assert report.graphs == graphs
    assert_listed_by_hand(MODELS["GPT-2"], report)


# transformers wraps whole layers, each in the same way: one model of each spelling is enough.
SAME_CODE = {"Mistral", "Qwen2", "Qwen3", "RoBERTa", "GLM", "Qwen2-MoE", "Mixtral"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SAME_CODE])
def test_train_like_masked_arithmetic_under_checkpointing(name: str, device: str) -> None:
    case = MODELS[name]

    def checkpoint(model: torch.nn.Module) -> None:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})

    assert_trains_like_masked(case, device, checkpoint, case.lost_to_checkpointing)
