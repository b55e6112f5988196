"""A GPT trained by Lightning, with 2:4-sparse feed-forward layers.

    python examples/lightning_gpt/train.py --steps 30

One line compiles the network of the LightningModule. Lightning hands its optimizers a closure that computes and clips
the gradients; masked decay is applied right after it, before the optimizer's own arithmetic. Two more lines keep masks
and counters in Lightning's checkpoints. Needs lightning.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import s24compile
from s24compile.demo.model import GPT, GPTConfig
from s24compile.demo.text import ByteText, read_sources


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches of tokens and targets, each int64 [B, T]."""

    def __init__(self, text: ByteText, count: int) -> None:
        self.text, self.count = text, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.text.batch("train", index, seed=1337, size=8, length=32)


class LitGPT(lightning.LightningModule):
    """The network and how one batch of it is trained."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.gpt = GPT(GPTConfig(n_layer=layers, n_head=2, n_embd=64))
        self.losses: list[float] = []

    def configure_model(self) -> None:
        """Lightning calls it before `configure_optimizers`, at each fit."""
        self.gpt.compile(backend="s24")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss: Tensor = self.gpt(*batch)[1]
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["s24"] = s24compile.state_dict(self.gpt)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        s24compile.load_state_dict(self.gpt, checkpoint["s24"])


def main() -> None:
    """Trains for a few steps and says what became sparse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=2)
    flags = parser.parse_args()

    lightning.seed_everything(1337, verbose=False)
    text = read_sources(limit=1 << 20)
    model = LitGPT(flags.layers)
    trainer = lightning.Trainer(
        max_steps=flags.steps, accumulate_grad_batches=2, gradient_clip_val=1.0, precision="bf16-mixed",
        devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(Batches(text, 2 * flags.steps), batch_size=None))
    weights = s24compile.sparse_weights(model.gpt)
    print(f"loss {model.losses[0]:.3f} -> {model.losses[-1]:.3f}, {len(weights)} sparse weights")


if __name__ == "__main__":
    main()
