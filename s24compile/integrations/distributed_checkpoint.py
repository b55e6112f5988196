"""Sparse state for torch.distributed.checkpoint (DCP), which writes what all ranks have and reads it under others."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from s24compile.errors import CheckpointError
from s24compile.weights.checkpoint import Entry
from s24compile.weights.model_state import load_state_dict, state_dict
from s24compile.wrappers import named_parameters


class Stateful:
    """A `torch.distributed.checkpoint.stateful.Stateful`: the masks, step counts and phases of a model.

        dcp.save({"model": ..., "s24": s24compile.Stateful(model)}, checkpoint_id=path)
        dcp.load({"model": ..., "s24": s24compile.Stateful(model)}, checkpoint_id=path)

    `dcp.load` reads the names that the state has which it is to fill, and of a model that has not run yet nobody knows
    what is sparse. So there is an entry for each of the model's parameters: bytes, which are empty where it has no
    sparse state. The names are the innermost model's, whatever wraps it and however many ranks there are. Its state may
    be loaded before or after the model's own, before or after the first forward.
    """

    def __init__(self, model: nn.Module) -> None:
        """model: the module behind the compiled one, or that one.

        Raises:
            ModelError: `model` is no module.
        """
        next(named_parameters(model), None)  # refuses what is no module
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """Parameter name -> bytes, for each parameter of the model."""
        entries = state_dict(self.model)
        return {name: _written(entries[name]) if name in entries else b"" for name, _ in named_parameters(self.model)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, whole or not at all.

        Raises:
            CheckpointError: names, shapes, recipe or bytes do not fit the model. Nothing has been changed.
        """
        if not isinstance(state_dict, Mapping):
            raise CheckpointError(
                found=f"it is a {type(state_dict).__name__}", accepted="load what Stateful.state_dict returned"
            )
        entries = {name: _read(name, value) for name, value in state_dict.items() if value != b""}
        for entry in entries.values():
            # Not as saved: a stage of a pipeline, or another number of them, reads its part.
            entry["weights"] = len(entries)
        load_state_dict(self.model, entries)


def _written(entry: Entry) -> bytes:
    file = io.BytesIO()
    torch.save(entry, file)
    return file.getvalue()


def _read(name: str, value: object) -> Entry:
    try:
        if not isinstance(value, bytes):
            raise TypeError(f"it is a {type(value).__name__}")
        entry = torch.load(io.BytesIO(value), map_location="cpu", weights_only=True)
        if not isinstance(entry, dict):
            raise TypeError(f"it holds a {type(entry).__name__}")
    except Exception as error:
        raise CheckpointError(
            found=f"the entry of {name!r} is no sparse state ({error})",
            accepted="load what s24compile.Stateful.state_dict returned, through torch.distributed.checkpoint",
        ) from error
    return entry
