"""A plain loop with everything that real ones have: fp16 with a GradScaler, fused AdamW, accumulation, checkpointing.

    python examples/plain_loop/train.py --steps 30

Nothing of it knows of sparsity but the line that compiles. Masks are searched, packed weights refreshed and masked
decay applied from hooks on the optimizer: once per step however many batches it accumulates, with gradients unscaled,
and not at all in a step that the scaler skips.
"""

from __future__ import annotations

import argparse

import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import s24compile
from s24compile.demo.model import GPT, GPTConfig
from s24compile.demo.text import read_sources


def main() -> None:
    """Trains for a few steps and says what became sparse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--backend", default="s24")
    flags = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1337)
    text = read_sources(limit=1 << 20)
    model = GPT(GPTConfig(n_layer=flags.layers, n_head=2, n_embd=64)).to(device)
    for name, block in model.blocks.named_children():  # activations are computed again in the backward, not kept
        model.blocks.register_module(name, checkpoint_wrapper(block))
    compiled = torch.compile(model, backend=flags.backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    scaler = torch.amp.GradScaler(device)

    losses = []
    accumulate = 2
    for step in range(flags.steps):
        for part in range(accumulate):
            batch = text.batch("train", step * accumulate + part, seed=1337, size=8, length=32)
            tokens, targets = (t.to(device) for t in batch)
            with torch.autocast(device, dtype=torch.float16):
                loss = compiled(tokens, targets)[1] / accumulate
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(accumulate * loss.item())
    weights = s24compile.sparse_weights(model)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, {len(weights)} sparse weights")


if __name__ == "__main__":
    main()
