"""Unmodified models and layers of `timm`, each with the feed-forward layers that a reader of its source lists."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import nn

from tests.zoo.case import Case, D, F, Ffn, in_layers


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


MODELS = {
    "ViT": vision_transformer("vit_tiny_patch16_224"),
    "DeiT": vision_transformer("deit_tiny_patch16_224"),
    "Mlp": alone(Mlp, "gelu", "fc1", "fc2"),
    "GluMlp": alone(GluMlp, "geglu", "fc1", "fc2", act_layer=nn.GELU),
    "SwiGLUPacked": alone(SwiGLUPacked, "swiglu", "fc1", "fc2"),
    "SwiGLU": alone(SwiGLU, "swiglu", "fc1_g", "fc1_x", "fc2"),
}
