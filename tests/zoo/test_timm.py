"""Unmodified models and layers of `timm`.

timm imports torchvision, and torchvision's own kernels must fit the installed torch (a CUDA build of it does not load
beside a CPU build of torch): where they do not, nothing of timm can be tested. Its spellings are tested without it, in
test_timm_spellings.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

try:
    import timm
    from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
except (ImportError, RuntimeError) as error:
    pytest.skip(f'timm cannot be imported (pip install -e ".[timm]"): {error}', allow_module_level=True)

from tests.zoo.case import Case, D, F, Ffn, in_layers
from tests.zoo.checks import assert_listed_by_hand, assert_trains_like_masked, explain_case


def vision_transformer(name: str, **more: Any) -> Case:
    sizes = {"embed_dim": D, "depth": 2, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 10, **more}
    return Case(
        lambda dropout: timm.create_model(name, **sizes, proj_drop_rate=0.1 if dropout else 0.0),
        lambda: {"x": torch.randn(2, 3, 32, 32)},
        in_layers("blocks.{}.mlp", "gelu", "fc1", "fc2"),
    )


def alone(kind: type[nn.Module], family: str, *weights: str, **more: Any) -> Case:
    """One of timm's layers as the whole model."""
    return Case(
        lambda dropout: kind(D, F, drop=0.1 if dropout else 0.0, **more),
        lambda: {"x": torch.randn(2, 8, D)},
        (Ffn("", family, tuple(f"{weight}.weight" for weight in weights)),),
    )


CASES = {
    "ViT": vision_transformer("vit_tiny_patch16_224"),
    "DeiT": vision_transformer("deit_tiny_patch16_224"),
    "Mlp": alone(Mlp, "gelu", "fc1", "fc2"),
    "GluMlp": alone(GluMlp, "geglu", "fc1", "fc2", act_layer=nn.GELU),
    "SwiGLUPacked": alone(SwiGLUPacked, "swiglu", "fc1", "fc2"),
    "SwiGLU": alone(SwiGLU, "swiglu", "fc1_g", "fc1_x", "fc2"),
}


@pytest.mark.parametrize("name", CASES)
def test_find_the_layers_that_a_reader_lists(name: str, device: str) -> None:
    assert_listed_by_hand(CASES[name], explain_case(CASES[name], device))


@pytest.mark.parametrize("name", CASES)
def test_train_like_masked_arithmetic(name: str, device: str) -> None:
    assert_trains_like_masked(CASES[name], device)


def test_refuse_a_gate_that_is_no_activation_of_ours(device: str) -> None:
    """GluMlp's default gate is a sigmoid."""
    case = Case(lambda dropout: GluMlp(D, F), lambda: {"x": torch.randn(2, 8, D)}, (), (("", "sigmoid"),))
    assert_listed_by_hand(case, explain_case(case, device))
