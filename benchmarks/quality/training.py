"""One run: a model of one size trained by one variant, resumable bit for bit, written to a JSONL file as it goes.

The first line of the file says what is trained, on what and where. Each further line is a window of steps:

    step              optimizer steps done
    train_loss        mean over the window, nats per token
    step_ms           wall clock per step of the window, validation and checkpoints left out
    warm              false where the window holds a compilation, whose time belongs to nobody
    sparse            whether the window's steps were 2:4
    validation_loss   at validation steps: through the compiled model, so a sparse model is judged with packed weights
    flip_rate         share of the masks that the last search changed, over all weights
    nonzero, over, dropped    with recipe "activation", means over the layers of what `activation_stats` gives
    step_flip_rate    share of the transposable masks of the feed-forward weights that the window's last step changed,
                      computed from the weights and used by nobody: the same quantity in all runs, dense ones too
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import s24compile
from benchmarks.quality.corpus import Corpus
from benchmarks.quality.plan import Plan
from benchmarks.record import circumstances
from s24compile.demo.model import GPT
from s24compile.errors import CheckpointError, ModelError
from s24compile.training.flip_rate import global_flip_rate
from s24compile.training.monitor import activation_scalars
from s24compile.weights.activation_stats import states_of


class Run:
    """One run in progress. Iterate `windows()` to train it."""

    def __init__(self, plan: Plan, corpus: Corpus, folder: Path, device: str, share: int = 1) -> None:
        self.plan, self.corpus, self.device = plan, corpus, device
        self.file = folder / f"{plan.file_name}.jsonl"
        self.checkpoint = folder / f"{plan.file_name}.pt"
        self.step = 0
        self.sparse = False
        """Whether the last step was 2:4, in at least one layer."""
        self.tokens = {"train": corpus.train.to(device), "validation": corpus.validation.to(device)}
        torch.manual_seed(plan.seed)
        full = 4 * plan.size.n_embd
        hidden = plan.variant.hidden_width(full)
        self.model = GPT(plan.size.gpt(corpus.vocabulary, hidden, plan.variant.activation)).to(device)
        options = plan.variant.config_options(plan.length)
        if options is None:
            self.compiled: Any = torch.compile(self.model, backend=plan.inner)
        else:
            self.compiled = torch.compile(self.model, backend="s24", options={"inner": plan.inner, **options})
        self.optimizer = self._optimizer()
        left_out = [re.compile(pattern) for pattern in (options or {}).get("exclude", ())]
        self.expected = {
            name
            for name, parameter in self.model.named_parameters()
            if options is not None and ".mlp." in name and parameter.dim() == 2
            if options["recipe"] != "activation" or name.endswith("c_proj.weight")
            if not any(pattern.search(name.removesuffix(".weight")) for pattern in left_out)
        }
        """Names of the weights that this variant trains 2:4, or by which its 2:4 hidden states are known."""
        self.head = round(plan.length * plan.variant.head) if options is not None else 0
        if self.head:
            s24compile.set_phase(self.model, "dense")
        self.header = {
            "plan": dataclasses.asdict(plan),
            "hidden": hidden,
            "options": options,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "tokens_a_step": plan.size.tokens_a_step,
            "share": share,  # processes on the device; above 1, step times say nothing
            "corpus": corpus.description,
            **circumstances(),
        }

    @property
    def done(self) -> bool:
        """Whether all steps have been made."""
        return self.step >= self.plan.length

    def start(self) -> None:
        """Continues from the checkpoint if there is one, else begins the file anew.

        Raises:
            CheckpointError: the checkpoint is of another plan or corpus.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.is_file():
            self._load()
        else:
            self.file.write_text(json.dumps(self.header) + "\n")

    def windows(self) -> Iterator[dict[str, Any]]:
        """Trains window by window, yielding each line of the file after it was written."""
        compiled_for: bool | None = None
        while not self.done:
            end = min(self.plan.length, self.step + self.plan.window)
            phases, loss = [], torch.zeros((), device=self.device)
            self._wait()
            started, first = time.perf_counter(), self.step
            while self.step < end:
                masks = self._masks() if self.step == end - 1 else []
                loss += self.train_step()
                phases.append(self.sparse)
            self._wait()
            seconds = time.perf_counter() - started
            line: dict[str, Any] = {
                "step": self.step,
                "train_loss": loss.item() / (end - first),
                "step_ms": 1e3 * seconds / (end - first),
                "warm": set(phases) == {compiled_for},
                "sparse": phases[-1],
                "step_flip_rate": _share_that_differs(masks, self._masks()),
                **self._shares(),
            }
            compiled_for = phases[-1]
            if self.done or self.step // self.plan.validate_every > first // self.plan.validate_every:
                line["validation_loss"] = self.validate()
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")
            yield line

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the first `validation_tokens` of the held-out text, nats per token."""
        size, text = self.plan.size, self.tokens["validation"]
        self.model.eval()
        count = max(1, min(size.validation_tokens, len(text) - 1) // size.sequence // size.batch)
        total = torch.zeros((), device=self.device)
        for i in range(count):
            places = torch.arange(i * size.batch, (i + 1) * size.batch) * size.sequence
            total += self._loss("validation", places % (len(text) - size.sequence - 1))
        self.model.train()
        return total.item() / count

    def save(self) -> None:
        """Writes the checkpoint; complete or absent, whenever the process is killed."""
        state = {
            "header": json.dumps(self._identity()),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "s24": s24compile.state_dict(self.model),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device.startswith("cuda") else None,
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["header"] != json.dumps(self._identity()):
            raise CheckpointError(
                found=f"{self.checkpoint.name} is of another plan or corpus", accepted="remove it, or train by its plan"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        s24compile.load_state_dict(self.model, state["s24"])
        self.step = state["step"]
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
        # What was written after the checkpoint will be written again.
        lines = self.file.read_text().splitlines(keepends=True)
        kept = [line for line in lines[1:] if line.endswith("\n") and json.loads(line)["step"] <= self.step]
        self.file.write_text("".join(lines[:1] + kept))

    def _identity(self) -> dict[str, Any]:
        return {name: self.header[name] for name in ("plan", "hidden", "options", "corpus")}

    def _optimizer(self) -> torch.optim.Optimizer:
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        if self.plan.variant.optimizer == "AdamW_STEP":
            return s24compile.AdamW_STEP(
                groups,
                betas=(0.9, 0.95),
                total_steps=self.plan.length,
                denominator=self.plan.variant.denominator,
            )
        return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=self.device.startswith("cuda"))

    def train_step(self) -> Tensor:
        """One optimizer step; returns its loss on the device."""
        size = self.plan.size
        if self.head and self.step == self.head:
            s24compile.set_phase(self.model, "sparse")
        for group in self.optimizer.param_groups:
            group["lr"] = size.learning_rate_at(self.step, self.plan.length)
        # A generator of its own: the batches depend on seed and step alone, whatever the variant draws.
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + self.step)
        total = torch.zeros((), device=self.device)
        for _ in range(size.micro_batches):
            places = torch.randint(len(self.tokens["train"]) - size.sequence - 1, (size.batch,), generator=generator)
            loss = self._loss("train", places) / size.micro_batches
            loss.backward()
            total += loss.detach()
        weights = s24compile.sparse_weights(self.model)
        weights |= {f"{path}.c_proj.weight": state.schedule for path, state in states_of(self.model).items()}
        self.sparse = any(weight.phase == "sparse" for weight in weights.values())
        if weights.keys() != self.expected:
            raise ModelError(
                what=self.plan.variant.name,
                found=f"{len(weights)} weights are sparse, not {len(self.expected)}",
                accepted="a layer was refused: TORCH_LOGS=+s24compile says which, and why",
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total

    def _loss(self, part: str, places: Tensor) -> Tensor:
        offsets = torch.arange(self.plan.size.sequence + 1, device=self.device)
        on_gpu = self.device.startswith("cuda")
        # From pinned memory, for the host is not to wait for the step before.
        places = (places.pin_memory() if on_gpu else places).to(self.device, non_blocking=True)
        text = self.tokens[part][places[:, None] + offsets].long()
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            loss: Tensor = self.compiled(text[:, :-1].contiguous(), text[:, 1:].contiguous())[1]
        return loss

    @torch.no_grad()
    def _masks(self) -> list[Tensor]:
        weights = [p for name, p in self.model.named_parameters() if ".mlp." in name and p.dim() == 2]
        return [s24compile.ops.transposable_mask(weight) for weight in weights]

    def _shares(self) -> dict[str, float]:
        rate = global_flip_rate(list(s24compile.sparse_weights(self.model).values()))
        shares = activation_scalars(s24compile.activation_stats(self.model), "")
        known = {name: shares[f"/{name}"] for name in ("nonzero", "over", "dropped") if f"/{name}" in shares}
        return known if rate is None else {"flip_rate": rate, **known}

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def _share_that_differs(before: list[Tensor], after: list[Tensor]) -> float:
    changed = torch.stack([(a != b).sum() for a, b in zip(before, after, strict=True)]).sum()
    return changed.item() / sum(mask.numel() for mask in after)
