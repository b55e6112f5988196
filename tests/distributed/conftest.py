"""The processes that tests of distribution share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Started at the first scenario."""
    started = Ranks()
    yield started
    started.stop()
