"""The two models, and how they are trained. Legend: B sequences, S tokens a sequence, D model width, F hidden width."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from s24compile.demo.model import GPTConfig


@dataclasses.dataclass(frozen=True)
class Size:
    """A model's shape and its training. Weight decay 0.1, clipping at 1, AdamW(0.9, 0.95), one cosine."""

    n_layer: int
    n_head: int
    n_embd: int
    sequence: int
    """S."""
    batch: int
    """Sequences of one forward."""
    micro_batches: int
    """Forwards of one optimizer step."""
    learning_rate: float
    warmup: int
    """Steps; at most a tenth of the run."""
    validation_tokens: int = 131_072

    def gpt(self, vocabulary: int, hidden: int, activation: str = "gelu") -> GPTConfig:
        """The model with a hidden width and an activation."""
        return GPTConfig(
            vocab_size=vocabulary, block_size=self.sequence, n_layer=self.n_layer, n_head=self.n_head,
            n_embd=self.n_embd, n_hidden=hidden, activation=activation,
        )  # fmt: skip

    @property
    def tokens_a_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.sequence * self.batch * self.micro_batches

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Linear warm-up, then a cosine down to a tenth at the last step."""
        warmup = min(self.warmup, max(1, steps // 10))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, steps - warmup)
        return self.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        # 26M parameters, F 2048: the model of the simulated first look, byte level.
        "30m": Size(8, 8, 512, sequence=512, batch=64, micro_batches=1, learning_rate=1e-3, warmup=200),
        # GPT-2 small, 85M parameters without embeddings, F 3072.
        "124m": Size(12, 12, 768, sequence=1024, batch=32, micro_batches=1, learning_rate=6e-4, warmup=200),
        # 0.8M parameters, F 512: eight minutes a run on one core of a CPU. Ideas are tried on it, not judged.
        "tiny": Size(
            4, 4, 128, sequence=64, batch=48, micro_batches=1, learning_rate=2e-3, warmup=100, validation_tokens=65_536
        ),
        # For tests of the harness on a CPU; its losses mean nothing.
        "toy": Size(
            2, 2, 32, sequence=16, batch=8, micro_batches=2, learning_rate=1e-3, warmup=2, validation_tokens=512
        ),
    }
)
