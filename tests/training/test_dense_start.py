"""What a scheduled dense phase starts from: all of the weights, or what the sparse model computed with."""

import pytest
import torch

import s24compile
from tests.training.test_recipes import ROW_WISE, compiled_with, ffn, masks_of, train_one

pytestmark = pytest.mark.usefixtures("on_device")


def trained(steps, *, recipe="fst", before_step=None, **options):
    """A layer after some steps, sparse for three of them; two calls with the same recipe see the same numbers."""
    model = ffn()
    compiled = compiled_with(model, recipe=recipe, decay=0.1, dense_after=3, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(1)
    for step in range(steps):
        if before_step is not None:
            before_step(step, model)
        train_one(compiled, model, optimizer, step)
    return model, compiled


def what_the_sparse_forward_used(recipe, model):
    """Of weights that a step has just left: M.W, or S-STE's beta S(W)."""
    used = {}
    for name, weight in s24compile.sparse_weights(model).items():
        parameter = model.get_parameter(name).detach()
        soft = recipe == "sste"
        used[name] = weight.scale * s24compile.ops.soft_threshold(parameter) if soft else parameter * weight.mask
    return used


@pytest.mark.parametrize("recipe", ["fst", *ROW_WISE])
def test_a_masked_start_computes_what_the_sparse_model_did(recipe):
    expected = what_the_sparse_forward_used(recipe, trained(3, recipe=recipe)[0])
    model, compiled = trained(3, recipe=recipe, dense_start="masked")
    assert len(expected) == 2
    for name, wanted in expected.items():
        found = model.get_parameter(name).detach()
        torch.testing.assert_close(found, wanted)
        assert (found == 0).float().mean() >= 0.5
    assert {weight.phase for weight in s24compile.sparse_weights(model).values()} == {"dense"}
    x = torch.randn(8, 16)
    torch.testing.assert_close(compiled(x), model(x))


def test_pruned_elements_train_on_from_zero():
    masks = masks_of(trained(3, dense_start="masked")[0])
    model, _ = trained(5, dense_start="masked")
    for name, mask in masks.items():
        pruned = model.get_parameter(name).detach()[~mask]
        assert (pruned != 0).float().mean() > 0.9
        assert pruned.abs().max() < 0.05, "two steps of 0.01 from zero"


@pytest.mark.parametrize("options", [{}, {"dense_start": "full"}])
def test_a_full_start_leaves_the_weights_alone(options):
    model, _ = trained(3, **options)
    assert all((p != 0).all() for name, p in model.named_parameters() if name.endswith("weight"))


def test_frozen_weights_keep_what_they_could_not_learn_again():
    def freeze(step, model):
        model[0].weight.requires_grad_(False)

    model, _ = trained(3, dense_start="masked", before_step=freeze)
    assert (model[0].weight != 0).all()
    assert (model[2].weight == 0).float().mean() >= 0.5


def test_weights_that_were_dense_already_are_left_alone():
    def go_dense(step, model):
        if step == 2:
            s24compile.set_phase(model, "dense")

    model, _ = trained(3, dense_start="masked", before_step=go_dense)
    assert all((p != 0).all() for name, p in model.named_parameters() if name.endswith("weight"))
