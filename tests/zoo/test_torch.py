"""Models that need nothing but torch, whole and block by block, with and without checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from tests.masked import gradients, live_masks, masked_call
from tests.zoo.checks import (
    EXACT,
    assert_listed_by_hand,
    assert_takes_down_projections,
    assert_trains_like_masked,
    explain_case,
    explain_forced,
    placed,
)
from tests.zoo.plain import CASES, HAND_WRITTEN
from tests.zoo.table import assert_in_the_docs


@pytest.mark.parametrize("name", CASES)
def test_find_the_layers_that_a_reader_lists(name: str, device: str) -> None:
    library, case = CASES[name]
    report = explain_case(case, device)
    assert_listed_by_hand(case, report)
    assert_in_the_docs(name, library, report)


@pytest.mark.parametrize("name", CASES)
def test_take_the_down_projections_alone(name: str, device: str) -> None:
    assert_takes_down_projections(CASES[name][1], device)


@pytest.mark.parametrize("name", CASES)
def test_train_like_masked_arithmetic(name: str, device: str) -> None:
    assert_trains_like_masked(CASES[name][1], device)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_train_block_by_block_as_torchtitan_compiles(checkpointed: bool, device: str) -> None:
    case = HAND_WRITTEN["Llama as in torchtitan"]
    model, inputs = placed(case, device)
    reference, _ = placed(case, device)
    for name, block in model.layers.named_children():
        wrapped = checkpoint_wrapper(block, preserve_rng_state=False) if checkpointed else block
        model.layers.register_module(name, torch.compile(wrapped, backend="s24", options=EXACT, fullgraph=True))
    y = model(**inputs)
    y.square().mean().backward()
    got = {plain_name(name): g for name, g in gradients(model).items()}
    masks = {plain_name(name): mask for name, mask in live_masks(model).items()}
    assert set(masks) == case.weights
    expected_y = masked_call(reference, masks, **inputs)
    expected_y.square().mean().backward()
    torch.testing.assert_close(y, expected_y, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(reference).items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()), msg=name)


def plain_name(name: str) -> str:
    return name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "")


def test_say_that_the_fast_path_of_torch_nn_runs_dense() -> None:
    """In eval mode without gradients torch.nn runs a whole layer as one fused op."""
    model = torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True).eval()
    with torch.no_grad():
        report = explain_forced(model, torch.randn(2, 8, 64))
    assert not report.rewritten
    assert report.refused or report.unseen
