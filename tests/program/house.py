"""The laws of the house, as functions that give what breaks them."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Imports go down, never up. Rooms of one floor that stand in different places do not import one another.
FLOORS = {
    "session_server": 5,
    "web": 4,
    "turns": 3,
    "agent": 2,
    "stores": 2,
    "storage": 1,
    "model": 1,
    "calculator": 1,
    "wire": 0,
}
EXTRAS = {
    "redis": "stores.redis",
    "mcp": "model.mcp",
    "prometheus_client": "web.metrics",
    "opentelemetry": "web.tracing",
}  # library: the room, with its neighbours of the same prefix, that may import it
MAX_LINES = {"storage": 500}  # of a room; 350 for all others
ROOM_LINES = 350
HOUSE_LINES = 6700  # of code that runs without an extra
FILE_BYTES = 128 << 10  # of a file that is kept in the repository
LARGE_FILES: dict[str, str] = {}  # those that may be larger: the path, and why
BUILT = (".whl", ".gz", ".zip", ".pyc", ".so", ".log")  # what is made from something else, and read by nobody
_NOT_KEPT = (".git", ".venv", "node_modules", "__pycache__", "build", "dist", "sessions", "_cache", ".egg-info")
_NO_CODE = (
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    tokenize.ENDMARKER,
)
NO_SUBJECT = {"utils", "helpers", "common", "constants", "types"}


class Import(NamedTuple):
    """An import of one room by another, and the name that it takes from there."""

    place: str  # file and line
    source: str
    target: str
    name: str


def rooms(root: Path) -> dict[str, Path]:
    """All modules of the program, by their dotted name."""
    found = {}
    for place in FLOORS:
        if (file := root / f"{place}.py").exists():
            found[place] = file
        for file in sorted((root / place).glob("*.py")):
            found[place if file.stem == "__init__" else f"{place}.{file.stem}"] = file
    return found


def imports(root: Path) -> Iterator[Import]:
    """Every import of the house by the house, also inside functions and for type checkers."""
    known = rooms(root)
    for source, file in known.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            place = f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in known:
                        yield Import(place, source, alias.name, "")
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if node.level:
                    yield Import(place, source, "." * node.level + module, "")
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    if inner in known or module in known:
                        yield Import(place, source, inner if inner in known else module, alias.name)


def broken_imports(root: Path) -> list[str]:
    """The imports that go up, sideways or in a circle, are relative, or take a private name."""
    found = []
    graph: dict[str, set[str]] = {}
    for place, source, target, name in imports(root):
        what = f"{place} imports {name} from {target}" if name else f"{place} imports {target}"
        if target.startswith("."):
            found.append(f"{what}, which is relative")
            continue
        above, below = source.partition(".")[0], target.partition(".")[0]
        if above != below and FLOORS[above] <= FLOORS[below]:
            way = "up" if FLOORS[above] < FLOORS[below] else "sideways"
            found.append(f"{what}, which goes {way} from floor {FLOORS[above]} to floor {FLOORS[below]}")
        if name.startswith("_"):
            found.append(f"{what}, which is private")
        graph.setdefault(source, set()).add(target)
    for room in graph:
        if room in _reachable(graph, room):
            found.append(f"{room} imports itself in a circle")
    return found


def _reachable(graph: dict[str, set[str]], room: str) -> set[str]:
    found: set[str] = set()
    pending = list(graph.get(room, ()))
    while pending:
        if (target := pending.pop()) not in found:
            found.add(target)
            pending += graph.get(target, ())
    return found


def broken_rooms(root: Path) -> list[str]:
    """The rooms that are too long, have no subject, or do not say it in one sentence; and packages that hold code."""
    found = []
    for room, file in rooms(root).items():
        text = file.read_text(encoding="utf-8")
        tree = ast.parse(text)
        length = len(text.splitlines())
        first = (ast.get_docstring(tree) or "").split("\n\n")[0]
        if length > MAX_LINES.get(room, ROOM_LINES):
            found.append(f"{room} has {length} lines")
        if room.rpartition(".")[2] in NO_SUBJECT:
            found.append(f"{room} is named after no subject")
        if not first.endswith(".") or re.search(r"[.]\s", first):
            found.append(f"{room} does not begin with one sentence: {first!r}")
        if file.name == "__init__.py" and len(tree.body) != 1:
            found.append(f"{file.relative_to(root)} holds more than its docstring")
    for file in sorted((root / "web" / "page").glob("*")):
        if file.suffix in (".js", ".css", ".html"):
            length = len(file.read_text(encoding="utf-8").splitlines())
            if length > ROOM_LINES:
                found.append(f"{file.relative_to(root)} has {length} lines")
    return found


def house_length(root: Path) -> int:
    """The lines of code of all rooms that run without an extra: without blank lines, comments and docstrings, which
    the house wants more of."""
    optional = tuple(EXTRAS.values())
    return sum(_code_lines(file) for room, file in rooms(root).items() if not room.startswith(optional))


def _code_lines(file: Path) -> int:
    text = file.read_text(encoding="utf-8")
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            numbers.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            numbers -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return len(numbers)


def unread_files(root: Path) -> list[str]:
    """The files of the repository that are too large to be read, or are made from others."""
    found = []
    for name in kept_files(root):
        size = (root / name).lstat().st_size
        if size > FILE_BYTES and name not in LARGE_FILES:
            found.append(f"{name} has {size} bytes")
        if name.endswith(BUILT):
            found.append(f"{name} is made from something else")
    return found


def kept_files(root: Path) -> list[str]:
    """The files of the repository. Where git knows none here, all but those that are never committed."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z"]
        names = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\0")
        if found := [name for name in names if name and os.path.lexists(root / name)]:
            return found
    found = []
    for path, directories, files in os.walk(root):
        directories[:] = [one for one in directories if not one.endswith(_NOT_KEPT)]
        found += [str((Path(path) / file).relative_to(root)) for file in files]
    return found


def library_users(root: Path, library: str) -> set[str]:
    """The rooms that import this library."""
    found = set()
    for room, file in rooms(root).items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if any(name.partition(".")[0] == library for name in names):
                found.add(room)
    return found
