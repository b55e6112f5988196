"""One private part of torch: an entry of the checklist, and the error where torch has lost one."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from types import TracebackType
from typing import Any

import torch

OLDEST, NEWEST = "2.11", "2.13"
"""The versions of torch that the lists were checked with."""


class TorchPartError(ImportError):
    """The installed torch does not have a private part of it that this package uses."""


class _Needed:
    """Inside, a part that torch has lost is a `TorchPartError`. Put it around imports, and around nothing else."""

    def __enter__(self) -> None: ...

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if isinstance(error, (ImportError, AttributeError)) and not isinstance(error, TorchPartError):
            raise _lost(str(error)) from error


needed = _Needed()


def part_of(owner: Any, name: str) -> Any:
    """`owner.name`.

    Raises:
        TorchPartError: it is not there.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise _lost(str(error)) from error


def _lost(what: str) -> TorchPartError:
    return TorchPartError(
        f"s24compile needs a part of torch that torch {torch.__version__} does not have: {what}. It was checked with "
        f"torch {OLDEST} to {NEWEST}: install one of these, or a newer s24compile"
    )


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
    on_cuda: bool = False
    """Whether builds of torch for CPUs do not have it."""

    def is_here(self) -> bool:
        """Whether the installed torch has it."""
        names = self.name.split(".")
        if self.on_instances:
            return _has(eval(self.on_instances, {"torch": torch}), names[-1:])
        for end in range(len(names), 0, -1):
            try:
                module = importlib.import_module(".".join(names[:end]))
            except ImportError:
                continue
            return _has(module, names[end:])
        return False


def _has(found: Any, names: list[str]) -> bool:
    try:
        functools.reduce(getattr, names, found)
    except AttributeError:
        return False
    return True
