"""The settings of the example's training: what `s24 train` takes from files and flags. The names are nanoGPT's where it
has one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from s24compile.errors import OptionError

_ACTIVATIONS = ("gelu", "relu2", "relu")
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
    activation: str = "gelu"
    """"gelu", or "relu2" or "relu", whose hidden states recipe="activation" makes 2:4."""
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
    """Largest norm of all gradients together; 0: no clipping."""
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
        if self.activation not in _ACTIVATIONS:
            raise OptionError(
                name="activation", value=self.activation,
                accepted="it must be one of " + ", ".join(map(repr, _ACTIVATIONS)),
            )  # fmt: skip
        if not 0 <= self.dropout < 1:
            raise OptionError(name="dropout", value=self.dropout, accepted="it must be in [0, 1)")
        if not -(2**63) <= self.seed < 2**64:
            raise OptionError(name="seed", value=self.seed, accepted="torch takes integers from -2**63 to 2**64 - 1")
        if self.options and self.backend != "s24":
            name, value = self.options[0]
            raise OptionError(name=name, value=value, accepted="it is an option of backend='s24'")
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
