"""The conformance suite over the two back ends that come with the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from storage import FileStorage, MemoryStorage, Storage

pytest.register_assert_rewrite("storage_conformance")

from storage_conformance import StorageConformance  # noqa: E402


class TestStorage(StorageConformance):
    @pytest.fixture(params=["memory", "files"])
    def make(self, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
        if request.param == "files":
            return lambda: FileStorage(str(tmp_path / "sessions"))
        storage = MemoryStorage()
        return lambda: storage
