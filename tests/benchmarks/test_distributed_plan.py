"""The plan on paper is what docs/distributed.md shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import distributed_plan


def test_show_in_the_docs_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    distributed_plan.main()
    table = capsys.readouterr().out
    assert table in (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    assert len(table.splitlines()) == 2 + len(distributed_plan.MODELS) * len(distributed_plan.RANKS)
