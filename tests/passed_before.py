"""A plugin of pytest (`-p tests.passed_before`), for its workers too: leaves out the tests that a file names.

S24_PASSED_BEFORE is the path of a JSON list of node ids. `--deselect` would not do: it takes prefixes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "S24_PASSED_BEFORE"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects by exact name."""
    passed = set(json.loads(Path(os.environ[VARIABLE]).read_text()))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]
