"""Counts the calls that a piece of code makes: what it costs the host, whatever the machine."""

from __future__ import annotations

import sys
from collections.abc import Callable


def count_calls(code: Callable[[], object]) -> int:
    """Python and C functions called while `code` runs."""
    count = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        code()
    finally:
        sys.setprofile(None)
    return count
