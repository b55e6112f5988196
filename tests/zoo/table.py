"""The table of docs/zoo.md, made by `s24compile.explain`. `python -m tests.zoo.table` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from s24compile.report import Report

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
HEAD = "| Model | Library | Layers | Linears | Where | Refused |\n| --- | --- | --- | --- | --- | --- |\n"
TABLE = re.compile(r"(?<=<!-- zoo: made by python -m tests.zoo.table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def row(name: str, library: str, report: Report) -> str:
    """One line of the table; layers that differ only by their number share an entry."""
    where = {f"`{anonymous(site.path)}` {site.family}" for site in report.rewritten}
    # Without the line in the library's source, which moves with its version.
    reasons = {f"`{anonymous(site.path)}`: {re.sub(r' [(].*', '', site.reason)}" for site in report.refused}
    layers, linears = len(report.rewritten), report.linears
    cells = (name, library, str(layers), str(linears), "<br>".join(sorted(where)), "<br>".join(sorted(reasons)))
    return f"| {' | '.join(cells)} |\n"


def anonymous(path: str) -> str:
    """ "h.0.mlp" as "h.*.mlp"."""
    return re.sub(r"(?<=[.])\d+(?=[.]|$)", "*", path) or "(root)"


def assert_in_the_docs(name: str, library: str, report: Report) -> None:
    found = TABLE.search(PAGE.read_text())
    assert found is not None
    assert row(name, library, report) in found[0], "docs/zoo.md is out of date: python -m tests.zoo.table"


def main() -> None:
    from tests.torchvision_ops import define_missing_operators

    define_missing_operators()  # before these import timm
    from tests.zoo import hugging_face, plain, timm_models
    from tests.zoo.checks import explain_case

    lines = [
        row(name, library, explain_case(case, "cpu"))
        for library, cases in (
            ("transformers", hugging_face.MODELS),
            ("timm", timm_models.MODELS),
            *plain.LIBRARIES.items(),
        )
        for name, case in cases.items()
    ]
    PAGE.write_text(TABLE.sub(lambda _: HEAD + "".join(lines), PAGE.read_text()))


if __name__ == "__main__":
    main()
