"""Markdown tables, and texts whose tables are made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

MADE = re.compile(r"<!-- made: (?P<name>[\w-]+)(?P<rest>[^>]*?) ?-->\n")
"""Opens a part that is made; in README.md `<!-- end -->` closes it."""
END = "<!-- end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text, the others numbers."""
    lines = [head, [":---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def refilled(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """`text` with each part between `<!-- made: NAME -->` and `<!-- end -->` made anew by `blocks[NAME]`."""

    def fill(found: re.Match[str]) -> str:
        return f"{found[0].partition(chr(10))[0]}\n{blocks[found['name']]()}\n{END}"

    return re.sub(MADE.pattern + r".*?" + re.escape(END), fill, text, flags=re.DOTALL)
