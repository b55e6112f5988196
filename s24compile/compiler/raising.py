"""How errors get from inside a backend to the user, through Dynamo."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from s24compile.errors import S24Error, is_suppressible, visible_through_dynamo
from s24compile.torch_internals.dynamo import suppresses_errors

log = logging.getLogger("s24compile")


@contextlib.contextmanager
def raising_through_dynamo() -> Iterator[None]:
    """Inside, errors of this package reach the user as they are, and none that Dynamo swallows goes without a word."""
    try:
        yield
    except Exception as error:
        if is_suppressible(error) and suppresses_errors():
            log.warning("a graph could not be compiled and runs dense, as suppress_errors asks: %s", error)
        if isinstance(error, S24Error):
            raise visible_through_dynamo(error) from None
        raise
