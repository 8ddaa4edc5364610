"""The conformance suite over the two back ends that come with the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage
from storage import MemoryStorage, Storage
from tests.support.storage_conformance import StorageConformance


class TestStorage(StorageConformance):
    @pytest.fixture(params=["memory", "files"])
    def make(self, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
        if request.param == "files":
            return lambda: FileStorage.open(str(tmp_path / "sessions"))
        storage = MemoryStorage()
        return lambda: storage
