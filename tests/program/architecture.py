"""The tables of the documents that come from the code: `python -m tests.program.architecture` writes them anew."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.program.house import FLOORS, place_of, rooms
from tests.program.limits import limits
from tests.support.server import ROOT

ROOMS = re.compile(r"(?<=<!-- rooms: begin -->\n).*(?=<!-- rooms: end -->)", re.DOTALL)
BOUNDS = re.compile(r"(?<=\| what is bounded \| by \| constant \| room \|\n).*?(?=\n\n|\n?\Z)", re.DOTALL)
NO_WORDS = "…"  # of a bound that nobody has described yet


def room_table(root: Path) -> str:
    """Every room with the sentence that its docstring begins with, from the top floor down."""
    lines = ["| floor | room | its subject |", "|---|---|---|"]
    for place, floor in FLOORS.items():
        for room, file in rooms(root).items():
            if place_of(room) == place and file.name != "__init__.py":
                sentence = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
                lines.append(
                    f"| {floor} | `{file.relative_to(root)}` | {' '.join(sentence.split()).removesuffix('.')} |"
                )
    return "".join(f"{line}\n" for line in lines)


def bound_table(root: Path, before: str) -> str:
    """Every bound with its number, its constant and its room, in the words that the table had for it before. Words
    follow a constant that moves to another room."""
    rows = re.findall(r"\| (.+?) \| [^|]+ \| `(\w+)` \| `(.+?)` \|", before)
    words = {(room, name): told for told, name, room in rows}
    bounds = limits(root)
    gone = {name: told for (room, name), told in words.items() if (room, name) not in bounds}
    lines = ["|---|---|---|---|"]
    for (room, name), value in bounds.items():
        told = words.get((room, name)) or gone.get(name) or NO_WORDS
        lines.append(f"| {told} | {value} | `{name}` | `{room}` |")
    return "\n".join(lines)


def main() -> None:
    architecture, reference = ROOT / "docs" / "architecture.md", ROOT / "docs" / "reference.md"
    text = architecture.read_text(encoding="utf-8")
    architecture.write_text(ROOMS.sub(lambda _: room_table(ROOT), text), encoding="utf-8")
    text = reference.read_text(encoding="utf-8")
    reference.write_text(BOUNDS.sub(lambda found: bound_table(ROOT, found[0]), text), encoding="utf-8")


if __name__ == "__main__":
    main()
