"""Training the example GPT on bytes: what `s24 demo` runs twice and `s24 train` once.

The only line that concerns sparsity is `torch.compile(model, backend="s24")`; masked decay, mask searches and packing
hang on the optimizer by themselves. The names of `TrainConfig` are nanoGPT's where it has one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import s24compile
from s24compile.demo.model import GPT, GPTConfig
from s24compile.demo.text import ByteText
from s24compile.errors import CheckpointError, OptionError

FLIPS_EVERY = 10
"""Steps between two looks at the flip rate, which is one number for all weights."""
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_LEAST = {
    ("n_layer", "n_head", "n_embd", "block_size", "batch_size", "gradient_accumulation_steps", "max_iters"): 1,
    ("eval_interval", "eval_iters", "checkpoint_interval"): 1,
    ("n_hidden", "warmup_iters", "learning_rate", "min_lr", "weight_decay", "grad_clip"): 0,
}
"""Settings -> the least value of each."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that a run depends on. Two runs of one config on one machine are the same run."""

    backend: str = "s24"
    """The backend of torch.compile: "s24", or "inductor" for the same model trained dense."""
    options: tuple[tuple[str, Any], ...] = ()
    """Fields of s24compile.Config as pairs, for backend="s24"."""
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    n_hidden: int = 0
    """Hidden width of the MLPs; 0: four times n_embd. Twice n_embd makes the dense control "half" of the papers."""
    block_size: int = 64
    """Sequence length in bytes."""
    dropout: float = 0.0
    bias: bool = True
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    max_iters: int = 300
    """Optimizer steps."""
    learning_rate: float = 2e-3
    min_lr: float = 2e-4
    warmup_iters: int = 20
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0
    eval_interval: int = 50
    """Steps between two looks at the validation loss; the last step always has one."""
    eval_iters: int = 8
    """Validation batches, the same ones each time."""
    checkpoint_interval: int = 100
    out_dir: str = "out"
    dataset: str = ""
    """Folder of .py files to train on; empty: the Python standard library."""
    seed: int = 1337
    device: str = "auto"
    dtype: str = "auto"
    """"float32", or "bfloat16" / "float16" for autocast; "auto": bfloat16 on a GPU, float32 on a CPU."""

    def __post_init__(self) -> None:
        """Raises OptionError for a value that no run can have."""
        for names, least in _LEAST.items():
            for name in names:
                if getattr(self, name) < least:
                    raise OptionError(name=name, value=getattr(self, name), accepted=f"it must be >= {least}")
        if self.n_embd % self.n_head:
            raise OptionError(
                name="n_embd", value=self.n_embd, accepted=f"it must be a multiple of n_head={self.n_head}"
            )
        if not 0 <= self.dropout < 1:
            raise OptionError(name="dropout", value=self.dropout, accepted="it must be in [0, 1)")
        if self.dtype not in _DTYPES:
            raise OptionError(
                name="dtype", value=self.dtype, accepted="it must be one of " + ", ".join(map(repr, _DTYPES))
            )

    def resolve(self) -> TrainConfig:
        """Returns the config with the machine's own device and dtype in place of "auto".

        Raises:
            OptionError: a device that this machine does not have, or a backend that torch does not know.
        """
        known = torch.compiler.list_backends(exclude_tags=())
        if self.backend not in known:
            raise OptionError(
                name="backend", value=self.backend, accepted="it must be one of " + ", ".join(map(repr, known))
            )
        device = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        _check_device(device)
        dtype = ("bfloat16" if device.startswith("cuda") else "float32") if self.dtype == "auto" else self.dtype
        return dataclasses.replace(self, device=device, dtype=dtype)

    def forced(self) -> TrainConfig:
        """The config with its layers 2:4 where they are too small to pay, too, unless its options say otherwise."""
        options = {"min_speedup": 0.0, **dict(self.options)}
        return dataclasses.replace(self, options=tuple(sorted(options.items())))

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to `min_lr` at the last step."""
        if step < self.warmup_iters:
            return self.learning_rate * (step + 1) / self.warmup_iters
        done = min(1.0, (step - self.warmup_iters) / max(1, self.max_iters - self.warmup_iters))
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * done)) * (self.learning_rate - self.min_lr)


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise OptionError(name="device", value=name, accepted="it must be 'cpu', 'cuda', 'cuda:N' or 'auto'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise OptionError(
            name="device",
            value=name,
            accepted=f"this machine has {torch.cuda.device_count()} CUDA devices that torch can use; 'cpu' and 'auto' "
            "always work, and `s24 doctor` says what is missing",
        )


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

    def write_jsonl(self, path: Path) -> None:
        """Writes one JSON object a step, for `s24 plot`; complete or as before, whenever the process is killed."""
        looks = {"validation_loss": dict(self.validation_loss), "flip_rate": dict(self.flip_rate)}
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
            self._note_flips()
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
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item()

    def _note_flips(self) -> None:
        if self.step % FLIPS_EVERY:
            return
        weights = s24compile.sparse_weights(self.model).values()
        rates = [(w.flip_rate, w.shape[0] * w.shape[1]) for w in weights]
        known = [(rate, count) for rate, count in rates if rate is not None]
        if known:
            whole = sum(count for _, count in known)
            self.history.flip_rate.append((self.step, sum(rate * count for rate, count in known) / whole))

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
