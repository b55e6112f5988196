"""A GPT trained in a loop of Hugging Face accelerate, with 2:4-sparse feed-forward layers.

    python examples/accelerate_gpt/train.py --steps 30

`Accelerator(dynamo_backend="s24")` is all; accelerate compiles what it prepares. Options go the other way: leave
dynamo_backend away and call `model.compile(backend="s24", options={...})` before `prepare`. Needs accelerate.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator

import s24compile
from s24compile.demo.model import GPT, GPTConfig
from s24compile.demo.text import read_sources


def main() -> None:
    """Trains for a few steps and says what became sparse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=2)
    flags = parser.parse_args()

    torch.manual_seed(1337)
    text = read_sources(limit=1 << 20)
    gpt = GPT(GPTConfig(n_layer=flags.layers, n_head=2, n_embd=64))
    s24compile.register_with_accelerate()
    accelerator = Accelerator(dynamo_backend="s24", gradient_accumulation_steps=2, mixed_precision="bf16")
    model, optimizer = accelerator.prepare(gpt, torch.optim.AdamW(gpt.parameters(), lr=3e-3))

    losses = []
    for step in range(2 * flags.steps):
        tokens, targets = (t.to(accelerator.device) for t in text.batch("train", step, seed=1337, size=8, length=32))
        with accelerator.accumulate(model):
            loss = model(tokens, targets)[1]
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    weights = s24compile.sparse_weights(gpt)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {len(weights)} sparse weights")


if __name__ == "__main__":
    main()
