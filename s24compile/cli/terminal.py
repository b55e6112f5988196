"""Where commands print: text as it is, because what is in brackets (shapes, extras, paths) is no markup."""

from __future__ import annotations

from rich.console import Console


def console(*, json: bool = False) -> Console:
    """A console on stdout, or beside JSON on stderr. Styles are those of `rich.text.Text`."""
    return Console(stderr=json, markup=False)
