"""The laws of the house, as functions that give what breaks them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Imports go down, never up. Rooms of one floor that stand in different places do not import one another.
CORE = "session_core"  # the package that holds all rooms but the front doors
FLOORS = {
    "session_server": 7,
    "session_core.web": 6,
    "session_core.turns": 5,
    "agent": 4,
    "session_core.stores": 4,
    "session_core.tools": 3,
    "storage": 2,
    "session_core.model": 2,
    "calculator": 1,
    "session_core.telemetry": 1,
    "session_core.data": 0,
}
EXTRAS = {
    "redis": "session_core.stores.redis",
    "mcp": "session_core.tools.mcp",
    "prometheus_client": "session_core.telemetry.metrics",
    "opentelemetry": "session_core.telemetry.traces",
}  # library: the room, with its neighbours of the same prefix, that may import it
MAX_LINES = {"storage": 500}  # of a room; 350 for all others
ROOM_LINES = 350
HOUSE_STATEMENTS = 11976  # of all rooms; 8,000 is what the house shall come down to
EXTRA_STATEMENTS = 1500  # of the rooms that need an extra, among them
TEST_LINES = 700  # of a file of tests, or of what they share
FILE_BYTES = 128 << 10  # of a file that is kept in the repository
LARGE_FILES = {  # those that may be larger: the path, and why
    "session_core/web/page/openapi.json": "it describes every answer of the server, in one document",
}
BUILT = (".whl", ".gz", ".zip", ".pyc", ".so", ".log")  # what is made from something else, and read by nobody
_NOT_KEPT = (".git", ".venv", "node_modules", "__pycache__", "build", "dist", "sessions", "_cache", ".egg-info")
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
    if (core := root / CORE / "__init__.py").exists():
        found[CORE] = core
    for place in FLOORS:
        path = root / place.replace(".", "/")
        if (file := path.with_suffix(".py")).exists():
            found[place] = file
        for file in sorted(path.glob("*.py")):
            found[place if file.stem == "__init__" else f"{place}.{file.stem}"] = file
    return found


def place_of(room: str) -> str:
    """The place where a room stands: a package of the core, or the room itself."""
    return ".".join(room.split(".")[:2]) if room.startswith(f"{CORE}.") else room


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
        above, below = place_of(source), place_of(target)
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
    for file in sorted((root / CORE / "web" / "page").glob("*")):
        if file.suffix in (".js", ".css", ".html"):
            length = len(file.read_text(encoding="utf-8").splitlines())
            if length > ROOM_LINES:
                found.append(f"{file.relative_to(root)} has {length} lines")
    return found


def house_size(root: Path, part: str = "") -> int:
    """The statements of all rooms, or of those that need an extra (`part="extras"`). Docstrings do not count: the
    house wants more of those. A statement cannot be packed, as a line can."""
    extras = tuple(EXTRAS.values()) if part else ("",)
    return sum(_statements(file) for room, file in rooms(root).items() if room.startswith(extras))


def _statements(file: Path) -> int:
    nodes = ast.walk(ast.parse(file.read_text(encoding="utf-8")))
    return sum(isinstance(node, ast.stmt) and not _is_constant(node) for node in nodes)


def _is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def long_tests(root: Path) -> dict[str, int]:
    """The files of tests that have more lines than one subject takes, and how many."""
    files = [root / name for name in kept_files(root) if name.startswith("tests/") and name.endswith(".py")]
    lengths = {str(file.relative_to(root)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    return {name: length for name, length in lengths.items() if length > TEST_LINES}


def homeless_tests(root: Path) -> set[str]:
    """The folders of tests that are named after no package of the house."""
    places = {place.rpartition(".")[2] for place in FLOORS} | {"program", "support", "npm"}
    return {
        name.split("/")[1] for name in kept_files(root) if name.startswith("tests/") and name.count("/") > 1
    } - places


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
