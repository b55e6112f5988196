"""Training the example GPT on bytes: what `s24 demo` runs twice and `s24 train` once.

The only line that concerns sparsity is `torch.compile(model, backend="s24")`. Masked decay is done by a hook that the
optimizer calls; mask searches and packing happen before a forward.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import s24compile
from s24compile.demo.model import GPT, GPTConfig
from s24compile.demo.settings import TrainConfig
from s24compile.demo.text import ByteText
from s24compile.errors import CheckpointError
from s24compile.training.flip_rate import global_flip_rate
from s24compile.training.monitor import activation_scalars

FLIPS_EVERY = 10
"""Steps between two looks at the flip rate, which is one number for all weights."""


@dataclasses.dataclass
class History:
    """What a run has seen so far; part of its checkpoint."""

    train_loss: list[float] = dataclasses.field(default_factory=list)
    """Nats per byte, one per step."""
    validation_loss: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    """(step, nats per byte)."""
    step_ms: list[float] = dataclasses.field(default_factory=list)
    """Wall clock of each step; the first holds the compile time."""
    flip_rate: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    """(step, share of all mask entries that the last search changed), every FLIPS_EVERY steps of a sparse run."""
    nonzero: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    over: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    dropped: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    """(step, mean over the layers of what `activation_stats` gives), as often in a run of recipe="activation"."""

    def write_jsonl(self, path: Path) -> None:
        """Writes one JSON object a step, for `s24 plot`; complete or as before, whenever the process is killed."""
        fields = ("validation_loss", "flip_rate", "nonzero", "over", "dropped")
        looks = {name: dict(getattr(self, name)) for name in fields}
        lines = []
        for step, (loss, step_ms) in enumerate(zip(self.train_loss, self.step_ms, strict=True), start=1):
            known = {name: values[step] for name, values in looks.items() if step in values}
            lines.append(json.dumps({"step": step, "train_loss": loss, "step_ms": step_ms, **known}) + "\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(lines))
        os.replace(partial, path)


class Run:
    """One training run: model, optimizer, history. Iterate `steps()` to train it."""

    def __init__(self, config: TrainConfig, text: ByteText) -> None:
        self.config = config.resolve()
        self.text = text
        self.step = 0
        self.history = History()
        self.model = self._model()
        options: dict[str, Any] = {"options": dict(config.options)} if config.options else {}
        self.compiled: Any = torch.compile(self.model, backend=config.backend, **options)
        self.optimizer = self._optimizer()
        self.scaler = torch.amp.GradScaler(self.config.device.split(":")[0], enabled=self.config.dtype == "float16")

    def steps(self) -> Iterator[int]:
        """Trains to `max_iters`, yielding the number of steps done after each one."""
        while self.step < self.config.max_iters:
            started = time.perf_counter()
            self.history.train_loss.append(self.train_step(self.step))
            self.history.step_ms.append(1e3 * (time.perf_counter() - started))
            self.step += 1
            self._note_shares()
            last = self.step == self.config.max_iters
            if last or self.step % self.config.eval_interval == 0:
                self.history.validation_loss.append((self.step, self.validate()))
            yield self.step

    def train_step(self, index: int) -> float:
        """Does optimizer step `index` with its batches and learning rate; returns the loss, nats per byte."""
        c = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = c.learning_rate_at(index)
        total = torch.zeros((), device=c.device)
        for micro in range(c.gradient_accumulation_steps):
            loss = self._loss("train", index * c.gradient_accumulation_steps + micro)
            self.scaler.scale(loss / c.gradient_accumulation_steps).backward()
            total += loss.detach() / c.gradient_accumulation_steps
        self.scaler.unscale_(self.optimizer)
        if c.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()

    def _note_shares(self) -> None:
        if self.step % FLIPS_EVERY:
            return
        rate = global_flip_rate(list(s24compile.sparse_weights(self.model).values()))
        if rate is not None:
            self.history.flip_rate.append((self.step, rate))
        shares = activation_scalars(s24compile.activation_stats(self.model), "")
        for name in ("nonzero", "over", "dropped"):
            if f"/{name}" in shares:
                getattr(self.history, name).append((self.step, shares[f"/{name}"]))

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the validation batches, through the compiled model: a sparse model is judged sparse."""
        self.compiled.eval()
        losses = [self._loss("validation", index).item() for index in range(self.config.eval_iters)]
        self.compiled.train()
        return sum(losses) / len(losses)

    def save(self, path: Path) -> None:
        """Writes a checkpoint. The file is complete or absent, whenever the process is killed."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "config": dataclasses.asdict(dataclasses.replace(self.config, options=())),
            "options": dict(self.config.options),
            "step": self.step,
            "history": dataclasses.asdict(self.history),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.config.device.startswith("cuda") else [],
            "s24": s24compile.state_dict(self.model) if self.config.backend == "s24" else {},
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continues from a checkpoint, bit for bit.

        Raises:
            CheckpointError: the checkpoint was made with other settings than this run's.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        self._check_same_run(state)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.config.backend == "s24":
            s24compile.load_state_dict(self.model, state["s24"])
        self.step = state["step"]
        self.history = History(**state["history"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])

    def _model(self) -> GPT:
        c = self.config
        torch.manual_seed(c.seed)
        shape = GPTConfig(
            block_size=c.block_size,
            n_layer=c.n_layer,
            n_head=c.n_head,
            n_embd=c.n_embd,
            n_hidden=c.n_hidden,
            dropout=c.dropout,
            bias=c.bias,
            activation=c.activation,
        )
        return GPT(shape).to(c.device)

    def _optimizer(self) -> torch.optim.Optimizer:
        c = self.config
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": c.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        if c.backend == "s24" and dict(c.options).get("recipe") == "step":
            return s24compile.AdamW_STEP(groups, lr=c.learning_rate, betas=(c.beta1, c.beta2), total_steps=c.max_iters)
        return torch.optim.AdamW(groups, lr=c.learning_rate, betas=(c.beta1, c.beta2), fused=c.device != "cpu")

    def batch(self, part: str, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, targets) [B, S] on the run's device, the same ones for the same index."""
        c = self.config
        tokens, targets = self.text.batch(part, index, seed=c.seed, size=c.batch_size, length=c.block_size)
        return tokens.to(c.device, non_blocking=True), targets.to(c.device, non_blocking=True)

    def _loss(self, part: str, index: int) -> torch.Tensor:
        tokens, targets = self.batch(part, index)
        with self._autocast():
            return self.compiled(tokens, targets)[1]

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.config.device.split(":")[0], getattr(torch, self.config.dtype))

    def _check_same_run(self, state: dict[str, Any]) -> None:
        mine = dataclasses.asdict(dataclasses.replace(self.config, options=()))
        free = {"max_iters", "eval_interval", "eval_iters", "checkpoint_interval", "out_dir", "options"}
        other = [
            f"{name} {state['config'].get(name)!r} -> {value!r}"
            for name, value in mine.items()
            if name not in free and state["config"].get(name) != value
        ]
        if state["options"] != dict(self.config.options):
            other.append(f"options {state['options']} -> {dict(self.config.options)}")
        if other:
            raise CheckpointError(
                found="settings changed: " + "; ".join(other), accepted="resume with the same settings"
            )
