"""What one model of the zoo is: how to make it small, what to feed it, and the layers a reader of its source lists.

Sizes everywhere: D = 64 model width, F = 256 hidden width, 2 layers, 128 tokens of vocabulary, random weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

D, F, LAYERS, VOCABULARY = 64, 256, 2, 128


@dataclasses.dataclass(frozen=True)
class Ffn:
    """One feed-forward layer, as written by hand: nothing here is asked of s24compile."""

    path: str
    family: str
    weights: tuple[str, ...]
    """Parameter names in the order gate, up, down."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, its inputs, and what is true of it."""

    make: Callable[[bool], nn.Module]
    """make(dropout) -> the model, in training mode; without dropout, two runs of it can be compared."""
    inputs: Callable[[], dict[str, Any]]
    ffns: tuple[Ffn, ...]
    refused: tuple[tuple[str, str], ...] = ()
    """(path, words of the reason) of what looks like a feed-forward layer and is none that can be taken."""
    lost_to_checkpointing: tuple[str, ...] = ()
    """Weights that a graph break inside a checkpointed layer leaves to eager execution, with any backend."""

    @property
    def weights(self) -> set[str]:
        return {name for ffn in self.ffns for name in ffn.weights}


def in_layers(path: str, family: str, *weights: str, layers: int = LAYERS) -> tuple[Ffn, ...]:
    """The same layer in every block: "h.{}.mlp" with weights named from there ("fc" is "h.0.mlp.fc.weight")."""
    paths = [path.format(i) for i in range(layers)]
    return tuple(Ffn(p, family, tuple(f"{p}.{weight}.weight" for weight in weights)) for p in paths)


def tokens() -> dict[str, Tensor]:
    """Token ids [B, S], none of them special."""
    return {"input_ids": torch.randint(5, VOCABULARY - 8, (2, 8))}


def pixels() -> dict[str, Tensor]:
    """Images [B, 3, 32, 32]: 16 patches of 8 x 8."""
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def main_output(out: Any) -> Tensor:
    """The tensor that a loss would be made of."""
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(out, name, None) is not None:
            return getattr(out, name)
    return out[0] if isinstance(out, tuple) else out
