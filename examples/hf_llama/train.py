"""A Llama trained by Hugging Face's own Trainer, with 2:4-sparse feed-forward layers.

    python examples/hf_llama/train.py --steps 30
    python examples/hf_llama/train.py --steps 30 --backend inductor      # the same run, dense
    python examples/hf_llama/train.py --steps 30 --in-place              # compiled before, with options

The Trainer's argument `torch_compile_backend="s24"` is all. accelerate, on which it stands, has a closed list of
backend names; `register_with_accelerate` adds ours. Gradients are accumulated over two batches and activations are
checkpointed, as a larger model would need. `TrainerCallback` keeps masks and step counts in the checkpoints, of which
this short run writes none. Needs transformers and accelerate: pip install -e ".[examples]".
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

import s24compile


class ByteWindows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Windows of a text, one token a byte; labels are the tokens, which the model shifts itself."""

    def __init__(self, text: bytes, length: int) -> None:
        self.windows = torch.tensor(list(text)).long().unfold(0, length, 3)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


def main() -> None:
    """Trains for a few steps and says what became sparse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--backend", default="s24")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--in-place", action="store_true", help="model.compile() instead of the Trainer's argument")
    flags = parser.parse_args()

    set_seed(1337)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=256, num_hidden_layers=flags.layers, num_attention_heads=4,
        max_position_embeddings=64, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if flags.in_place:
        model.compile(backend=flags.backend, options={"decay": 1e-4})
    else:
        s24compile.register_with_accelerate()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            torch_compile=not flags.in_place,
            torch_compile_backend=None if flags.in_place else flags.backend,
            max_steps=flags.steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            gradient_checkpointing=True,
            learning_rate=3e-3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = ByteWindows(Path(__file__).read_bytes(), 32)
        callbacks: list[Any] = [s24compile.TrainerCallback()]  # no subclass: accelerate's users need no transformers
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=callbacks)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = s24compile.sparse_weights(model)
    print(f"loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f}, {len(weights)} sparse weights")


if __name__ == "__main__":
    main()
