"""Sparse state beside the checkpoints of transformers' Trainer, and among those of accelerate."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from s24compile.errors import CheckpointError, ModelError
from s24compile.weights.model_state import load_state_dict, state_dict

log = logging.getLogger("s24compile")

FILE = "s24.pt"
"""Its name in a checkpoint's folder: what `s24compile.state_dict` returned, for `torch.load(weights_only=True)`."""


class TrainerCallback:
    """Saves the masks, step counts and phases with each checkpoint of a Trainer, and restores them when it resumes.

        Trainer(model=model, callbacks=[s24compile.TrainerCallback()], ...)

    Without it a resumed run begins its schedule anew. With `load_best_model_at_end` the best checkpoint's masks come
    back with its weights. For accelerate the same object is what `register_for_checkpointing` takes, for
    `save_state` and `load_state`:

        accelerator.register_for_checkpointing(s24compile.TrainerCallback(model))

    where the model may be left away: it is then those that the Accelerator has prepared.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        """model: None for that of the Trainer, or of the Accelerator.

        Raises:
            ModelError: it is no module.
        """
        if model is not None and not isinstance(model, nn.Module):
            raise ModelError(
                what="TrainerCallback", found=f"a {type(model).__name__} was given", accepted="pass an nn.Module"
            )
        self._model: weakref.ref[nn.Module] | None = None if model is None else weakref.ref(model)

    def __getattr__(self, name: str) -> Any:
        # Trainer calls all events of all callbacks. Not by inheritance: accelerate's users may not have transformers.
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Restores the state of the checkpoint that the Trainer resumes from."""
        self._model = weakref.ref(model)
        folder = _resumed_from(args, state)
        if folder is not None:
            _load(model, folder, "resumed")

    def on_save(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Writes the state into the folder of the checkpoint that has just been written."""
        entries = state_dict(model)  # on all ranks, of which one writes
        if state.is_world_process_zero:
            _write(entries, _run_folder(args) / f"checkpoint-{state.global_step}" / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **others: Any) -> None:
        """Restores the state of the best checkpoint, whose weights the Trainer has just loaded."""
        if getattr(args, "load_best_model_at_end", False) and state.best_model_checkpoint is not None:
            _load(model, Path(state.best_model_checkpoint), "loaded")

    def state_dict(self) -> dict[str, Any]:
        """Number of the model -> what `s24compile.state_dict` returns of it."""
        return {str(number): state_dict(model) for number, model in enumerate(self._models())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned.

        Raises:
            CheckpointError: it does not fit the model; nothing of that model's has been changed.
        """
        models = {str(number): model for number, model in enumerate(self._models())}
        if not isinstance(state, Mapping) or state.keys() != models.keys():
            raise CheckpointError(
                found=f"it is of the models {list(state) if isinstance(state, Mapping) else type(state).__name__}, and "
                f"there are {list(models)} now",
                accepted="prepare the models, in the order in which they were when it was saved, before it is loaded",
            )
        for number, model in models.items():
            if state[number]:
                load_state_dict(model, state[number])

    def _models(self) -> list[nn.Module]:
        model = None if self._model is None else self._model()
        if model is not None:
            return [model]
        # `Accelerator.save_state` and `load_state` give no model.
        for owner in _values_of_callers("self"):
            if any(held is self for held in getattr(owner, "_custom_objects", ())):
                return list(owner._models)
        raise ModelError(
            what="TrainerCallback",
            found="it knows no model",
            accepted="give it one, TrainerCallback(model); or give it to a Trainer, or to an Accelerator's "
            "register_for_checkpointing",
        )


def _nothing(*args: Any, **kwargs: Any) -> None:
    """An event that has no consequence."""


def _load(model: nn.Module, folder: Path, how: str) -> None:
    if (folder / FILE).is_file():
        entries = torch.load(folder / FILE, map_location="cpu", weights_only=True)
        if entries:
            load_state_dict(model, entries)
        return
    log.warning(
        "the model is %s from %s, which holds no %s: masks and step counts begin anew, and with them dense_after, "
        "dense_until and total_steps. Save them with s24compile.TrainerCallback from the start of a run.",
        how,
        folder,
        FILE,
    )


def _write(entries: dict[str, Any], path: Path) -> None:
    """Writes a file that is whole at each moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{FILE}-")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(entries, file)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


def _resumed_from(args: Any, state: Any) -> Path | None:
    """The folder of the checkpoint that the Trainer has resumed from; None if it has not.

    It is no part of what callbacks are given, but the argument of the function that calls them.
    """
    for given in _values_of_callers("resume_from_checkpoint"):
        return Path(given) if isinstance(given, (str, os.PathLike)) else None
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" if state.global_step else None


def _run_folder(args: Any) -> Path:
    """The folder that holds the checkpoints of this run: a search of hyperparameters has one for each."""
    for trainer in _values_of_callers("self"):
        if hasattr(trainer, "_get_output_dir"):
            trial = next(iter(_values_of_callers("trial")), None)
            return Path(trainer._get_output_dir(trial))
    return Path(args.output_dir)


def _values_of_callers(name: str) -> list[Any]:
    """The values of the local variable `name` of all functions on the stack that have it, innermost first."""
    values: list[Any] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if name in frame.f_locals:
            values.append(frame.f_locals[name])
        frame = frame.f_back
    return values
