"""A tool that asks before it sends a letter, and what it has sent."""

from __future__ import annotations

from pathlib import Path

from agent import tool

sent: list[str] = []  # to whom letters were sent in the test's own process


@tool(needs_approval=True)
def send(to: str) -> str:
    """Sends a letter."""
    sent.append(to)
    return f"sent to {to}"


_TOOLS = '''
import pathlib
from agent import tool

SENT = pathlib.Path({path!r})


@tool(needs_approval=True)
def send(to: str) -> str:
    """Sends a letter."""
    with SENT.open("a") as file:
        file.write(to + "\\n")
    return f"sent to {{to}}"


TOOLS = [send]
'''


class Letters:
    """The tool, in a file of that directory: `flag` names it to a server."""

    def __init__(self, directory: Path) -> None:
        self._sent = directory / "sent"
        path = directory / "letters.py"
        path.write_text(_TOOLS.format(path=str(self._sent)))
        self.flag = f"-tools={path}"

    @property
    def sent(self) -> list[str]:
        """To whom letters were sent."""
        return self._sent.read_text().split() if self._sent.exists() else []
