"""2:4-sparse training of transformers: `torch.compile(model, backend="s24")`.

A map of the package, in the order in which data flows:

* `compiler`: from Dynamo's graph to a callable: the torch.compile backend, `@sparse_ffn`, `explain`.
* `passes`: FX graph -> FX graph with s24 ops (find feed-forward layers, decide, rewrite, verify).
* `lowering`: forward and backward graphs of AOTAutograd -> graphs of concrete kernels.
* `training`: what follows an optimizer's steps: masked decay, step counts, flip rates, STEP, the search of a decay.
* `weights`: the masks, schedules and packed weights behind each parameter, and when they are packed again.
* `kernels`: what each op means (contract, reference) and faster ways to say it (Triton, CUTLASS).
* `tensor`: `Sparse24`, the packed matrix that is a tensor. `export`: other libraries' formats, after training.
* `integrations`: what accelerate, transformers and torch.distributed need to know of us.
* `graphs`: words about FX graphs that passes, lowering and compiler share. `ops`: the ops as plain functions.
* `config`, `recipe`, `errors`, `report`: the leaves that everything may import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import s24compile.tensor.saved  # noqa: F401 (lets torch.load(weights_only=True) read a saved Sparse24)

if TYPE_CHECKING:
    from s24compile import errors, export, ops
    from s24compile.compiler.decorator import sparse_ffn
    from s24compile.compiler.explanation import explain
    from s24compile.config import Config
    from s24compile.integrations.accelerate import register_with_accelerate
    from s24compile.integrations.distributed_checkpoint import Stateful
    from s24compile.integrations.trainer_callback import TrainerCallback
    from s24compile.kernels.packed import Packed24
    from s24compile.report import Report
    from s24compile.tensor.construct import to_sparse_semi_structured
    from s24compile.tensor.sparse24 import Sparse24
    from s24compile.training.monitor import log_activation_stats, log_flip_rates
    from s24compile.training.step import AdamW_STEP
    from s24compile.training.tune_decay import tune_decay
    from s24compile.weights.activation_stats import ActivationStats, activation_stats
    from s24compile.weights.fp8_stats import fp8_stats
    from s24compile.weights.model_state import bake_, load_state_dict, refresh, set_phase, sparse_weights, state_dict
    from s24compile.weights.sparse_weight import SparseWeight

__version__ = "0.1.0"

__all__ = [
    "ActivationStats",
    "AdamW_STEP",
    "Config",
    "Packed24",
    "Report",
    "Sparse24",
    "SparseWeight",
    "Stateful",
    "TrainerCallback",
    "activation_stats",
    "bake_",
    "errors",
    "explain",
    "export",
    "fp8_stats",
    "load_state_dict",
    "log_activation_stats",
    "log_flip_rates",
    "ops",
    "refresh",
    "register_with_accelerate",
    "set_phase",
    "sparse_ffn",
    "sparse_weights",
    "state_dict",
    "to_sparse_semi_structured",
    "tune_decay",
]

# Imported at first use: most of it needs torch._dynamo, which costs more than a second that a script may not need.
_HOMES = {
    "ActivationStats": "weights.activation_stats",
    "AdamW_STEP": "training.step",
    "Config": "config",
    "Packed24": "kernels.packed",
    "Report": "report",
    "Sparse24": "tensor.sparse24",
    "SparseWeight": "weights.sparse_weight",
    "Stateful": "integrations.distributed_checkpoint",
    "TrainerCallback": "integrations.trainer_callback",
    "activation_stats": "weights.activation_stats",
    "bake_": "weights.model_state",
    "explain": "compiler.explanation",
    "fp8_stats": "weights.fp8_stats",
    "load_state_dict": "weights.model_state",
    "log_activation_stats": "training.monitor",
    "log_flip_rates": "training.monitor",
    "refresh": "weights.model_state",
    "register_with_accelerate": "integrations.accelerate",
    "set_phase": "weights.model_state",
    "sparse_ffn": "compiler.decorator",
    "sparse_weights": "weights.model_state",
    "state_dict": "weights.model_state",
    "to_sparse_semi_structured": "tensor.construct",
    "tune_decay": "training.tune_decay",
}


def __getattr__(name: str) -> Any:
    if name in ("errors", "export", "ops"):
        return importlib.import_module(f"s24compile.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 's24compile' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"s24compile.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
