"""Fixtures that the tests of stores share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where sessions are to be kept; in memory where the system offers that, since many are made here."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path / "sessions"
        return
    with tempfile.TemporaryDirectory(dir=memory) as parent:
        yield Path(parent) / "sessions"


@pytest.fixture
def storage(directory: Path) -> FileStorage:
    return FileStorage.open(str(directory))
