"""The numbers that bound what the program does, as `docs/reference.md` tells them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.program.house import rooms
from tests.program.house_code import House

NO_LIMITS = {"_SECTOR_BYTES", "_EVENTS", "_M_MMAP_THRESHOLD", "_OLD_SUBSTITUTE"}  # of disks, the system and old data
_COMPUTED = (ast.Constant, ast.BinOp, ast.UnaryOp, ast.Name, ast.operator, ast.unaryop, ast.expr_context)


def limits(root: Path) -> dict[tuple[str, str], str]:
    """Every number that a room names, by the room's file and the name, as a reader is told it."""
    house = House(root)
    found = {}
    for room, file in rooms(root).items():
        for name, expression in _constants(house.trees[room]):
            value = _value(house, room, expression)
            if value is not None and name not in NO_LIMITS:
                found[str(file.relative_to(root)), name] = told(name, value)
    return found


def told(name: str, value: float) -> str:
    """A number with the unit that its name bears: `8 MiB`, `0.15 s`, `200`."""
    if name.endswith("BYTES"):
        sizes = (("MiB", 20), ("KiB", 10), ("bytes", 0))
        unit, size = next((unit, size) for unit, size in sizes if not value % (1 << size))
        return f"{int(value) >> size:,} {unit}"
    if name.endswith("MILLISECONDS"):
        return f"{value / 1000:,g} s"
    return f"{value:,g} s" if name.endswith("SECONDS") else f"{value:,}"


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The names that a room gives to single values, with those values."""
    for line in tree.body:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, value


def _value(house: House, room: str, expression: ast.expr) -> float | None:
    """The number that an expression of numbers and their names comes to. None for any other expression."""
    if not all(isinstance(node, _COMPUTED) for node in ast.walk(expression)):
        return None
    names = {}
    for node in ast.walk(expression):
        if isinstance(node, ast.Name):
            other, _, name = (house.meaning(room, node.id) or f"{room}.{node.id}").rpartition(".")
            inner = dict(_constants(house.trees.get(other, ast.Module([], [])))).get(name)
            if inner is None or (value := _value(house, other, inner)) is None:
                return None
            names[node.id] = value
    result = eval(compile(ast.Expression(expression), room, "eval"), {}, names)  # noqa: S307
    return result if type(result) in (int, float) else None
