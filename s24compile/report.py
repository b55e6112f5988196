"""What was rewritten, what was refused, and why: the rows behind `explain()`, the log and the command line. A leaf."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Site:
    """One feed-forward layer (or one linear, with targets="linear") that the passes looked at.

    `reason` is a sentence: for a refusal why, for a rewrite what is worth knowing (or empty).
    """

    path: str
    """Innermost module that holds all its linears, as in `named_modules()`: "blocks.0.mlp"."""
    family: str
    """"gelu", "swiglu", "geglu", "linear", ...: activation and gating, the name of the pattern that matched."""
    shape: str
    """Model and hidden width, e.g. "64 -> 256 -> 64"."""
    status: Literal["rewritten", "refused"]
    reason: str = ""
    source: str = ""
    """The user's own line, "file.py:12"."""
    weights: tuple[str, ...] = ()
    """Parameter names (without `_orig_mod.`) in the order gate, up, down."""
    linears_at: tuple[str, ...] = ()
    """Module paths of its linears, in that order: what `Config.include` and `exclude` are searched in."""
    linears: int = 0
    """How many of the layer's matmuls are 2:4 now."""
    rule: str = ""
    """The rule that rewrote it, for S24_FUEL bisection."""
    saved_bytes: tuple[tuple[str, int], ...] = ()
    """What it keeps for the backward: "Z", the activation's operand, and "H", its result; or "P", a 2:4 hidden
    state."""
    recomputable_bytes: int = 0
    """How many of them memory="save" leaves out."""
    decorated: bool = False
    """Whether it stands in a module decorated with `sparse_ffn`."""
    notes: tuple[str, ...] = ()
    """Whatever else is worth knowing of it, a sentence each: its precision, what scales it keeps, ..."""

    @property
    def remarks(self) -> str:
        """The reason and the notes, as one text; empty where there is nothing to say."""
        return "; ".join(filter(None, (self.reason, *self.notes)))

    @property
    def sentence(self) -> str:
        """The row as the log prints it."""
        what = f"{self.path or '(root)'}: {self.family} {self.shape} {self.status}"
        return f"{what}{': ' + self.remarks if self.remarks else ''}{f' ({self.source})' if self.source else ''}"


@dataclasses.dataclass(frozen=True)
class Report:
    """The answer of `s24compile.explain`: all sites of all graphs, and what no graph held.

    `str(report)` is a table; `report.to_json()` is for machines.
    """

    sites: tuple[Site, ...]
    graphs: int
    """How many graphs Dynamo captured; more than one means graph breaks."""
    target: str
    """What it would be compiled for, e.g. "cpu" or "sm_90"."""
    providers: tuple[tuple[str, str], ...] = ()
    """(op, provider of its kernel) as they would be chosen on this target."""
    unseen: tuple[str, ...] = ()
    """Matrices among the parameters, embeddings apart, that no captured graph takes: what is multiplied by them runs
    outside `torch.compile`, dense."""

    @property
    def rewritten(self) -> tuple[Site, ...]:
        """The layers that would train sparse."""
        return tuple(site for site in self.sites if site.status == "rewritten")

    @property
    def refused(self) -> tuple[Site, ...]:
        """The layers that would stay dense, each with its reason."""
        return tuple(site for site in self.sites if site.status == "refused")

    @property
    def linears(self) -> int:
        """How many matmuls would be 2:4."""
        return sum(site.linears for site in self.sites)

    @property
    def saved_bytes(self) -> dict[str, int]:
        """What the rewritten layers keep for the backward, by name."""
        found: dict[str, int] = {}
        for name, count in (pair for site in self.rewritten for pair in site.saved_bytes):
            found[name] = found.get(name, 0) + count
        return found

    def to_json(self) -> str:
        """The report as a JSON object with the fields of this class."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def __str__(self) -> str:
        head = ("module", "family", "shape", "linears", "2:4", "reason", "source")
        rows = [
            (s.path or "(root)", s.family, s.shape, _linears(s), str(s.linears) if s.linears else "no", s.remarks,
             s.source)
            for s in self.sites
        ]  # fmt: skip
        lines = [*_table([head, *rows]), "", self._summary()]
        if self.saved_bytes:
            lines.append(self._memory())
        if self.providers:
            names = [f"s24::{op} by {provider}" for op, provider in self.providers]
            lines.append("kernels: " + ", ".join(names))
        if self.unseen:
            lines.append("in no captured graph, so dense: " + ", ".join(self.unseen))
        return "\n".join(lines)

    def _summary(self) -> str:
        graphs = "1 graph" if self.graphs == 1 else f"{self.graphs} graphs"
        return (
            f"{len(self.rewritten)} of {len(self.sites)} layers would train 2:4 sparse "
            f"({self.linears} linears) on {self.target}, in {graphs}"
        )

    def _memory(self) -> str:
        saved = describe_saved(self.saved_bytes)
        less = sum(site.recomputable_bytes for site in self.rewritten)
        return f"they save {saved} for the backward" + (
            f"; memory='save' saves {format_bytes(less)} less" if less else ""
        )


def _linears(site: Site) -> str:
    """Its linears by module path, or where they have none (weights of a user's own op) by parameter."""
    named = [path for path in site.linears_at if path]
    return ", ".join(named if len(named) == len(site.linears_at) else site.weights)


def describe_saved(saved: Mapping[str, int]) -> str:
    """Bytes by name, in words."""
    return ", ".join(f"{name} {format_bytes(count)}" for name, count in saved.items())


def format_bytes(count: int) -> str:
    """A size in words: "512 B", "100.7 MB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Left-aligned columns; plain text, because `str()` must not depend on a terminal."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
