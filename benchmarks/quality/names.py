"""What readers call the variants, and which of them a picture shows."""

from __future__ import annotations

SIZES = {"124m": "124M", "30m": "26M", "tiny": "0.8M"}
"""Model -> its name in tables, in their order: "30m" has 26 million parameters."""

LABELS = {
    "fst-l1-no-mvue-down-head1/6": "fst-down",
    "fst-l1-no-mvue-head1/6": "fst-exact",
    "fst": "fst",
    "fst-l1-no-mvue-tail3/6": "fst-exact, dense second half",
    "narrow=2688": "",
    "narrow=2368": "",
    "narrow=1728": "",
    "narrow=1600": "",
    "half": "dense, half of F",
    "sste": "sste",
    "ste": "ste",
}
"""Variant -> label, in the order in which a picture takes them. Recipes are called what users call them; those without
a label, what they are."""

LINES = 8
"""Of a picture, at most; more of them nobody can tell apart."""


def label(variant: str) -> str:
    """Of a variant: "dense, F = 1600" for "narrow=1600", and its own name where there is nothing better."""
    return LABELS.get(variant) or variant.replace("narrow=", "dense, F = ")


def shown(names: set[str]) -> list[str]:
    """The variants of a picture: of those that were run, the first of LABELS; dense is the line at zero."""
    return [name for name in LABELS if name in names][: LINES - 1]
