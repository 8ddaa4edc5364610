"""The conversations of the README and of docs/conversation.md, typed as they stand there: what comes back is what
stands there.

Ids, times, the port and the place of the checkout differ from run to run; a line `…` stands for any lines.
`python -m tests.program.test_readme` writes into both what comes back now.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.support.server import ROOT, TIMEOUT, environment

DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "conversation.md"]
TRANSCRIPT = re.compile(r"(?<=<!-- transcript: begin -->\n).*(?=<!-- transcript: end -->)", re.DOTALL)
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
ID = re.compile(r"\b(?:session|msg|evt)-[0-9a-f]{32}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
HOME = "/home/you/session_server"
ANY = "…"


@dataclass
class Step:
    """A command, what the document says comes back, and what came back."""

    command: str
    said: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)
    same: bool = False


def steps_of(block: str) -> list[Step]:
    steps: list[Step] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:]))
        else:
            steps[-1].said.append(line)
    return steps


def transcript(document: Path) -> str:
    found = TRANSCRIPT.search(document.read_text(encoding="utf-8"))
    assert found, f"{document.name} has no transcript"
    return found[0]


class Shell:
    """A shell in a directory that looks like a checkout with its virtual environment; the port is a free one."""

    def __init__(self, directory: Path) -> None:
        python = directory / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        (directory / "session_server.py").symlink_to(ROOT / "session_server.py")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = f":{listener.getsockname()[1]}"
        self._directory = str(directory)
        self._ids: dict[str, str] = {}  # those of the document, as they are called here
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            ["bash"],
            cwd=directory,
            env=environment({"SESSION_SERVER_PORT": self._port[1:]}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def type(self, step: Step) -> None:
        """Runs the command, waits for its end and for as many lines as the document has, and compares."""
        command = ID.sub(lambda found: self._ids.get(found[0], found[0]), step.command).replace(":8080", self._port)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\necho 'the end of it'\n")
        ended = False
        while not ended or len(step.got) < len([line for line in step.said if line != ANY]):
            try:
                line = self._lines.get(timeout=TIMEOUT)
            except queue.Empty:
                break
            if line is None:
                break
            if line == "the end of it":
                ended = True
            else:
                step.got.append(line.replace(self._port, ":8080").replace(self._directory, HOME))
        step.same = self._is_same(step.said, step.got)

    def as_in_the_document(self, line: str) -> str:
        """The line with the ids that the document has for those of here."""
        there = {here: there for there, here in self._ids.items()}
        return ID.sub(lambda found: there.get(found[0], found[0]), line)

    def _is_same(self, said: list[str], got: list[str]) -> bool:
        if ANY in said:
            head, tail = said.index(ANY), len(said) - said.index(ANY) - 1
            said = said[:head] + said[head + 1 :]
            got = got[:head] + got[max(head, len(got) - tail) :]
        return len(said) == len(got) and all(map(self._is_same_line, said, got))

    def _is_same_line(self, said: str, got: str) -> bool:
        if ID.split(TIME.sub("", said)) != ID.split(TIME.sub("", got)):
            return False
        here = [self._ids.setdefault(id, other) for id, other in zip(ID.findall(said), ID.findall(got), strict=True)]
        return here == ID.findall(got)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # and what it has started
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()


STEPS = {
    document: [step for block in BLOCK.findall(transcript(document)) for step in steps_of(block)]
    for document in DOCUMENTS
}
CASES = [(document, number) for document, steps in STEPS.items() for number in range(len(steps))]


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Path, list[Step]]]:
    missing = [tool for tool in ("curl", "jq") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs the Debian packages {' and '.join(missing)}")
    for steps in STEPS.values():
        with Shell(tmp_path_factory.mktemp("conversation")) as shell:
            for step in steps:
                shell.type(step)
    yield STEPS


@pytest.mark.parametrize(
    ("document", "number"),
    CASES,
    ids=[f"{document.name}: {STEPS[document][number].command[:60]}" for document, number in CASES],
)
def test_what_the_documents_show_is_what_happens(
    conversations: dict[Path, list[Step]], document: Path, number: int
) -> None:
    step = conversations[document][number]
    assert step.same, "\n".join([f"{document.name} says", *step.said, "and this came back", *step.got])


def test_the_long_conversation_has_all_that_was_promised_of_it() -> None:
    """A session created, streamed to and asked, the calculator, the list, the file, a crash, and a deletion."""
    steps = STEPS[ROOT / "docs" / "conversation.md"]
    commands = "\n".join(step.command for step in steps)
    for part in ("-X POST", "/run_stream", "/run ", "15 * 23", "/sessions\n", "jq", "kill -9", "-X DELETE"):
        assert part in commands, part
    assert any('"result":"345"' in line for step in steps for line in step.said)


def main() -> None:
    for document in DOCUMENTS:
        with tempfile.TemporaryDirectory() as directory, Shell(Path(directory)) as shell:

            def again(block: re.Match[str], shell: Shell = shell) -> str:
                lines = []
                for step in steps_of(block[0]):
                    shell.type(step)
                    said = step.said if step.same else map(shell.as_in_the_document, step.got)
                    lines += [f"$ {step.command}", *said]
                return "".join(f"{line}\n" for line in lines)

            written = BLOCK.sub(again, transcript(document))
        text = document.read_text(encoding="utf-8")
        document.write_text(TRANSCRIPT.sub(lambda _, written=written: written, text), encoding="utf-8")


if __name__ == "__main__":
    main()
