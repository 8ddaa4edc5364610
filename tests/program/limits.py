"""The numbers that bound what the program does, as `docs/reference.md` tells them."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

from tests.program.house import rooms

NO_LIMITS = {"_SECTOR_BYTES", "_M_MMAP_THRESHOLD", "_OLD_SUBSTITUTE"}  # what disks, the C library and old data have


def limits(root: Path) -> dict[tuple[str, str], str]:
    """Every number that a room names, by the room's file and the name, as a reader is told it."""
    found = {}
    for room, file in rooms(root).items():
        for line in ast.parse(file.read_text(encoding="utf-8")).body:
            match line:
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    value = getattr(importlib.import_module(room), name)
                    if type(value) in (int, float) and name not in NO_LIMITS:
                        found[str(file.relative_to(root)), name] = told(name, value)
    return found


def told(name: str, value: float) -> str:
    """A number with the unit that its name bears: `8 MiB`, `0.15 s`, `200`."""
    if name.endswith("BYTES"):
        unit, size = next(
            (unit, size) for unit, size in (("MiB", 20), ("KiB", 10), ("bytes", 0)) if not value % (1 << size)
        )
        return f"{int(value) >> size:,} {unit}"
    if name.endswith("MILLISECONDS"):
        return f"{value / 1000:,g} s"
    return f"{value:,g} s" if name.endswith("SECONDS") else f"{value:,}"
