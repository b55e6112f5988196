"""Models that need nothing but torch: our own GPT, torch.nn's transformers, torchtitan's Llama, a MoE of linears."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from s24compile.demo.model import GPT, GPTConfig
from tests.zoo.case import LAYERS, VOCABULARY, Case, D, F, Ffn, in_layers, tokens
from tests.zoo.torchtitan import Transformer


def sequence() -> dict[str, Tensor]:
    """Vectors [B, S, D], by the name that torch.nn's layers give them."""
    return {"src": torch.randn(2, 8, D)}


def two_sequences() -> dict[str, Tensor]:
    return {"src": torch.randn(2, 8, D), "tgt": torch.randn(2, 6, D)}


def layer(kind: type[nn.Module], dropout: bool, **more: Any) -> nn.Module:
    return kind(D, 4, F, dropout=0.1 if dropout else 0.0, batch_first=True, **more)


def encoder(dropout: bool, **more: Any) -> nn.Module:
    one = layer(nn.TransformerEncoderLayer, dropout, **more)
    return nn.TransformerEncoder(one, LAYERS, enable_nested_tensor=False)


class LinearExperts(nn.Module):
    """A mixture of experts that are plain modules, all of them computed and weighted by the router."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(D, experts)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(D, F), nn.SiLU(), nn.Linear(F, D)) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        shares = functional.softmax(self.router(x), dim=-1)
        parts = [share.unsqueeze(-1) * expert(x) for share, expert in zip(shares.unbind(-1), self.experts, strict=True)]
        return x + torch.stack(parts).sum(0)


def in_stack(name: str, family: str, *weights: str) -> tuple[Ffn, ...]:
    return in_layers(f"{name}.layers.{{}}", family, *weights)


NN = ("linear1", "linear2")
TORCH = {
    "TransformerEncoderLayer": Case(
        lambda dropout: layer(nn.TransformerEncoderLayer, dropout), sequence,
        (Ffn("", "relu", ("linear1.weight", "linear2.weight")),),
    ),
    "TransformerEncoder": Case(lambda dropout: encoder(dropout), sequence, in_layers("layers.{}", "relu", *NN)),
    "TransformerEncoder (gelu, norm_first)": Case(
        lambda dropout: encoder(dropout, activation="gelu", norm_first=True), sequence,
        in_layers("layers.{}", "gelu", *NN),
    ),
    "TransformerDecoderLayer": Case(
        lambda dropout: layer(nn.TransformerDecoderLayer, dropout),
        lambda: {"tgt": torch.randn(2, 6, D), "memory": torch.randn(2, 8, D)},
        (Ffn("", "relu", ("linear1.weight", "linear2.weight")),),
    ),
    "Transformer": Case(
        lambda dropout: nn.Transformer(
            D, 4, LAYERS, LAYERS, F, dropout=0.1 if dropout else 0.0, batch_first=True
        ),
        two_sequences,
        in_stack("encoder", "relu", *NN) + in_stack("decoder", "relu", *NN),
    ),
}  # fmt: skip
HAND_WRITTEN = {
    "nanoGPT-like": Case(
        lambda dropout: GPT(GPTConfig(VOCABULARY, 16, LAYERS, 4, D, dropout=0.1 if dropout else 0.0)),
        lambda: {"tokens": tokens()["input_ids"]},
        in_layers("blocks.{}.mlp", "gelu", "c_fc", "c_proj"),
    ),
    "Llama as in torchtitan": Case(
        lambda dropout: Transformer(D, F, LAYERS, 4, VOCABULARY, 16),
        lambda: {"tokens": tokens()["input_ids"]},
        in_layers("layers.{}.feed_forward", "swiglu", "w1", "w3", "w2"),
    ),
    "MoE of linears": Case(
        lambda dropout: LinearExperts(3),
        lambda: {"x": torch.randn(2, 8, D)},
        in_layers("experts.{}", "silu", "0", "2", layers=3),
    ),
}
LIBRARIES = {"torch.nn": TORCH, "hand-written": HAND_WRITTEN}
CASES = {name: (library, case) for library, cases in LIBRARIES.items() for name, case in cases.items()}
