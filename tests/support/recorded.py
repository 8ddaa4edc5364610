"""Lines of a turn that a test records by itself."""

from __future__ import annotations


class Lines:
    """The lines of a turn that has said just these, and goes on or has `ended`."""

    def __init__(self, *lines: bytes, ended: bool = False) -> None:
        self._lines = list(lines)
        self.ended = ended
        self.size = sum(map(len, lines))

    def events(self, after: int) -> tuple[list[bytes], bool]:
        return self._lines[after:], self.ended

    def partial_text(self, after: int) -> tuple[list[bytes], int]:
        return self._lines[after:], len(self._lines)
