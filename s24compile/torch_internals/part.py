"""One private part of torch: an entry of the checklist."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import Any

import torch

OLDEST, NEWEST = "2.11", "2.13"
"""The versions of torch that the lists were checked with."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Something that torch does not promise to keep."""

    name: str
    """Where it is: "torch._dynamo.exc.ShortenTraceback"; an attribute of instances is that of their class."""
    without: str
    """What breaks without it."""
    seen: tuple[str, ...] = (OLDEST, NEWEST)
    """The versions that have it, of those that were looked at."""
    on_instances: str = ""
    """Of an attribute that no class has: how a test makes an object that has it."""

    def is_here(self) -> bool:
        """Whether the installed torch has it."""
        names = self.name.split(".")
        for end in range(len(names), 0, -1):
            try:
                found: Any = importlib.import_module(".".join(names[:end]))
            except ImportError:
                continue
            if self.on_instances:
                found, names = eval(self.on_instances, {"torch": torch}), names[-1:]
                end = 0
            try:
                functools.reduce(getattr, names[end:], found)
            except AttributeError:
                return False
            return True
        return False
