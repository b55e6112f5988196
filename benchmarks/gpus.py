"""Which GPU a process of several may use."""

from __future__ import annotations

import os


def visible_device(gpu: int) -> str:
    """The name of the `gpu`-th device that this process may use, for one that may use it alone."""
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[gpu] if named else str(gpu)
