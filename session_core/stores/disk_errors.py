"""What the system refuses, as an error of the store."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from storage import StorageUnavailable

log = logging.getLogger(__name__)


@contextlib.contextmanager
def unavailable(verb: str, what: str, level: int = logging.ERROR) -> Iterator[None]:
    """Logs the system's errors and raises StorageUnavailable for them."""
    try:
        yield
    except OSError as error:
        log.log(level, "cannot %s %s: %s", verb, what, error)
        raise StorageUnavailable(f"cannot {verb} {what}: {error.strerror or error}") from error
