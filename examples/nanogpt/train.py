"""Trains a small GPT on bytes of Python sources with 2:4-sparse feed-forward layers, and can be killed at any moment.

    python examples/nanogpt/train.py --steps 300
    python examples/nanogpt/train.py --steps 300 --resume       # goes on from the last checkpoint, bit for bit
    python examples/nanogpt/train.py --recipe sste              # by another recipe
    python examples/nanogpt/train.py --backend inductor         # the same run, dense
    python examples/nanogpt/train.py --backend inductor --hidden 256    # dense at half the width: the FLOPs of 2:4

The model is plain PyTorch (s24compile/demo/model.py does not import s24compile). Three lines of this script know of
sparsity: the one that compiles, and the two that save and restore masks and step counters.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from pathlib import Path
from typing import Any

import torch

import s24compile
from s24compile.demo.model import GPT, GPTConfig
from s24compile.demo.text import read_sources


def main() -> None:
    """Reads the flags, trains, prints one line per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="s24")
    parser.add_argument("--recipe", default="fst")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--checkpoint-every", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("out/nanogpt"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=0, help="of the MLPs; default: four times the width")
    parser.add_argument("--batch", type=int, default=16)
    flags = parser.parse_args()
    for name, value in (("--steps", flags.steps), ("--checkpoint-every", flags.checkpoint_every)):
        if value < 1:
            parser.error(f"{name} must be >= 1")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = read_sources()
    torch.manual_seed(1337)
    model = GPT(GPTConfig(n_layer=flags.layers, n_embd=flags.width, n_hidden=flags.hidden)).to(device)
    settings: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
    optimizer: torch.optim.Optimizer
    if flags.recipe == "step":  # the one recipe that is an optimizer
        optimizer = s24compile.AdamW_STEP(model.parameters(), **settings, total_steps=flags.steps)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), **settings)
    options = {"recipe": flags.recipe} if flags.backend == "s24" else None
    compiled = torch.compile(model, backend=flags.backend, options=options)

    step = load(flags.out / "checkpoint.pt", model, optimizer) if flags.resume else 0
    while step < flags.steps:
        batch = text.batch("train", step, seed=1337, size=flags.batch, length=model.config.block_size)
        tokens, targets = (t.to(device) for t in batch)
        loss = compiled(tokens, targets)[1]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        print(f"step {step} loss {loss.item():.4f}", flush=True)
        if step % flags.checkpoint_every == 0 or step == flags.steps:
            save(flags.out / "checkpoint.pt", model, optimizer, step)
    print(f"done: {len(s24compile.sparse_weights(model))} sparse weights, weights {digest(model)}")


def save(path: Path, model: GPT, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes everything that the rest of the run depends on; a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "s24": s24compile.state_dict(model),
        # The MVUE of the weight gradients draws from torch's generator.
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
    }
    torch.save(state, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def load(path: Path, model: GPT, optimizer: torch.optim.Optimizer) -> int:
    """Restores a checkpoint and returns its step."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    s24compile.load_state_dict(model, state["s24"])
    torch.set_rng_state(state["rng"])
    torch.cuda.set_rng_state_all(state["cuda_rng"])
    return int(state["step"])


def digest(model: GPT) -> str:
    """Hash of all weights, to compare two runs bit for bit."""
    data = hashlib.sha256()
    for parameter in model.parameters():
        data.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return data.hexdigest()[:16]


if __name__ == "__main__":
    main()
