"""The laws of functions and classes, as functions that give what breaks them."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.program.house import rooms

MAX_COMPLEXITY = 15
MAX_ATTRIBUTES = 12
MAX_SIGNATURES = 2  # through which a flag or a callback is handed on
USED_FROM_OUTSIDE: set[str] = set()  # names that only a library calls, though it is no base of their class
_VALUES = {"NamedTuple", "TypedDict", "Enum", "IntEnum", "StrEnum", "Protocol", "BaseModel"}  # their fields are data
_OUTSIDE = {"open", "start", "Popen", "mkdir", "makedirs", "make_directory", "connect", "create_connection", "synced"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Definition:
    """A function or a class of the house, where it stands, and the class or function around it."""

    room: str
    owner: str
    node: Function | ast.ClassDef

    @property
    def name(self) -> str:
        """As the laws name it: `room.Class.method`."""
        return ".".join(filter(None, (self.room, self.owner, self.node.name)))


class House:
    """The source of all rooms, with what each name stands for in each of them."""

    def __init__(self, root: Path) -> None:
        files = rooms(root)
        self.trees = {room: ast.parse(file.read_text(encoding="utf-8")) for room, file in files.items()}
        self.definitions = [one for room, tree in self.trees.items() for one in _definitions(room, tree, "")]
        self.functions = {one.name: one for one in self.definitions if isinstance(one.node, Function)}
        self.classes = {one.name: one for one in self.definitions if isinstance(one.node, ast.ClassDef)}
        self._meanings = {room: dict(_meanings(room, tree)) for room, tree in self.trees.items()}

    def meaning(self, room: str, name: str) -> str:
        """What a name stands for in a room: the dotted name of a definition or a module; or an empty string."""
        return self._meanings[room].get(name, "")

    def bases(self, one: Definition) -> list[str]:
        """The bases of a class, by their dotted names where they are of the house."""
        assert isinstance(one.node, ast.ClassDef)
        texts = [ast.unparse(base).partition("[")[0] for base in one.node.bases]
        return [self.meaning(one.room, text) or text for text in texts]

    def family(self, one: Definition) -> Iterator[Definition]:
        """A class, and those of the house that it inherits from."""
        yield one
        for base in self.bases(one):
            if base in self.classes and base != one.name:
                yield from self.family(self.classes[base])

    def called(self, one: Definition, call: ast.Call) -> Definition | None:
        """The function of the house that a call within a function reaches, as far as names tell. A class is its
        constructor; a method of some object is found where only one class has one of its name."""
        match call.func:
            case ast.Name(id=name):
                target = self.meaning(one.room, name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name):
                target = f"{one.room}.{one.owner.partition('.')[0]}.{name}"
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if self.meaning(one.room, owner):
                target = f"{self.meaning(one.room, owner)}.{name}"
            case ast.Attribute(attr=name):
                methods = [key for key, it in self.functions.items() if it.owner and it.node.name == name]
                target = methods[0] if len(methods) == 1 else ""
            case _:
                target = ""
        return self.functions.get(f"{target}.__init__" if target in self.classes else target)


def _definitions(room: str, parent: ast.AST, owner: str) -> Iterator[Definition]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, Function | ast.ClassDef):
            yield Definition(room, owner, node)
            yield from _definitions(room, node, f"{owner}.{node.name}".lstrip("."))
        else:
            yield from _definitions(room, node, owner)


def _meanings(room: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            yield node.name, f"{room}.{node.name}"


# --- complexity ---


def complex_functions(house: House) -> dict[str, int]:
    """The functions that are above the complexity that one may have, and theirs."""
    found = {name: complexity(one.node) for name, one in house.functions.items()}
    return {name: number for name, number in found.items() if number > MAX_COMPLEXITY}


def complexity(function: ast.AST) -> int:
    """McCabe's number: one, and one for each way in which the function can branch. A function within it counts."""
    return 1 + sum(map(_branches, ast.walk(function)))


def _branches(node: ast.AST) -> int:
    match node:
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.If() | ast.IfExp() | ast.For() | ast.AsyncFor() | ast.While() | ast.match_case():
            return 1
        case ast.ExceptHandler() | ast.Assert():
            return 1
    return 0


# --- attributes ---


def crowded_classes(house: House) -> dict[str, int]:
    """The classes whose instances have more attributes than one may have, inherited ones counted, and how many.

    The fields of a frozen dataclass, a named tuple, a typed dictionary, a protocol or a pydantic model are data: they
    do not count.
    """
    found = {name: len(_attributes(house, one)) for name, one in house.classes.items()}
    return {name: number for name, number in found.items() if number > MAX_ATTRIBUTES}


def _attributes(house: House, one: Definition) -> set[str]:
    family = list(house.family(one))
    bases = {base.rpartition(".")[2] for relative in family for base in house.bases(relative)}
    decorators = [ast.unparse(decorator) for relative in family for decorator in relative.node.decorator_list]
    if _VALUES & bases or any("frozen=True" in decorator for decorator in decorators):
        return set()
    return {attribute for relative in family for attribute in _own_attributes(relative.node)}


def _own_attributes(node: Function | ast.ClassDef) -> Iterator[str]:
    for inner in ast.walk(node):
        match inner:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name
    for line in node.body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name)) if "ClassVar" not in ast.unparse(line.annotation):
                yield name


# --- flags and callbacks that are handed on ---


def handed_on(house: House) -> set[str]:
    """The flags and callbacks that stand in more than two signatures, though all but the last only hand them on, as
    `first(name) > second(name) > third(name)`."""
    steps = {
        (name, parameter): _next(house, one, parameter)
        for name, one in house.functions.items()
        for parameter in _switches(house, one)
    }
    chains = [_chain(steps, step) for step in steps]
    tails = {chain[1:] for chain in chains}
    long = [chain for chain in chains if len(chain) > MAX_SIGNATURES and chain not in tails]
    return {" > ".join(f"{name}({parameter})" for name, parameter in chain) for chain in long}


Step = tuple[str, str]  # a function and a parameter of it


def _chain(steps: dict[Step, Step | None], step: Step) -> tuple[Step, ...]:
    found = [step]
    while (after := steps.get(found[-1])) and after not in found:
        found.append(after)
    return tuple(found)


def _switches(house: House, one: Definition) -> Iterator[str]:
    """The parameters that are flags or callbacks."""
    for argument in _arguments(one):
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        if (
            annotation.startswith("bool")
            or "Callable" in annotation
            or annotation in _callbacks(house.trees[one.room])
        ):
            yield argument.arg


def _callbacks(tree: ast.Module) -> set[str]:
    """The names that a room gives to types of callbacks."""
    lines = [line for line in tree.body if isinstance(line, ast.Assign) and "Callable[" in ast.unparse(line.value)]
    return {ast.unparse(target) for line in lines for target in line.targets}


def _arguments(one: Definition) -> list[ast.arg]:
    assert isinstance(one.node, Function)
    arguments = one.node.args
    return [
        each
        for each in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        if each.arg not in ("self", "cls")
    ]


def _next(house: House, one: Definition, parameter: str) -> Step | None:
    """Where the only thing that a function does with a parameter is to hand it on, to whom, and as what."""
    uses = [node for node in ast.walk(one.node) if isinstance(node, ast.Name) and node.id == parameter]
    calls = [
        node for node in ast.walk(one.node) if isinstance(node, ast.Call) and _position(node, parameter) is not None
    ]
    if len(uses) != 1 or len(calls) != 1 or (target := house.called(one, calls[0])) is None:
        return None
    position = _position(calls[0], parameter)
    names = [argument.arg for argument in _arguments(target)]
    if isinstance(position, int):
        return (target.name, names[position]) if position < len(names) else None
    return (target.name, str(position)) if position in names else None


def _position(call: ast.Call, parameter: str) -> int | str | None:
    """Which argument of a call is this parameter: by its number or its keyword."""
    for number, argument in enumerate(call.args):
        if isinstance(argument, ast.Name) and argument.id == parameter:
            return number
    for keyword in call.keywords:
        if isinstance(keyword.value, ast.Name) and keyword.value.id == parameter:
            return keyword.arg
    return None


# --- what a constructor does ---


def busy_constructors(house: House) -> set[str]:
    """The constructors that do input or output, or start a thread or a process, themselves or by a method of their
    own, and by which call."""
    found = set()
    for name, one in house.functions.items():
        if one.node.name == "__init__":
            found |= {f"{name} calls {call}" for call in _outside_calls(house, one, {name})}
    return found


def _outside_calls(house: House, one: Definition, seen: set[str]) -> Iterator[str]:
    for node in ast.walk(one.node):
        if not isinstance(node, ast.Call):
            continue
        if ast.unparse(node.func).rpartition(".")[2] in _OUTSIDE:
            yield ast.unparse(node.func)
        target = house.called(one, node) if ast.unparse(node.func).startswith("self.") else None
        if target and target.name not in seen:
            seen.add(target.name)
            yield from _outside_calls(house, target, seen)


# --- dead code ---


def dead_code(house: House, used: set[str]) -> set[str]:
    """The functions, classes, constants and attributes that no line of the program names, beside their own. What a
    class inherits from a library may be called by that library, and so may the names in `used`."""
    named = sum((_names(tree) for tree in house.trees.values()), Counter[str]())
    found = set()
    for one in house.definitions:
        name = one.node.name
        if named[name] == _names(one.node)[name] and not _is_for_others(house, one):
            found.add(one.name)
    for room, tree in house.trees.items():
        found |= {f"{room}.{name}" for name in _constants(tree) if not named[name]}
    for name, one in house.classes.items():
        if not _has_foreign_base(house, one):
            found |= {f"{name}.{attribute}" for attribute in _own_attributes(one.node) if not named[attribute]}
    return {name for name in found if name.rpartition(".")[2] not in {*used, "__all__"}}


def _names(tree: ast.AST) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name, ctx=ast.Load()):
                found[name] += 1
            case ast.Constant(value=str(name)):
                found[name] += 1
            case ast.MatchClass(kwd_attrs=names):
                found.update(names)
    return found


def _constants(tree: ast.Module) -> Iterator[str]:
    for line in tree.body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _is_for_others(house: House, one: Definition) -> bool:
    if one.node.name.startswith("__") or any(map(_registers, one.node.decorator_list)):
        return True
    owner = house.classes.get(f"{one.room}.{one.owner}")
    return owner is not None and _has_foreign_base(house, owner)


def _registers(decorator: ast.expr) -> bool:
    """Whether a decorator has the framework call the function: it adds a route."""
    return ast.unparse(decorator).startswith("blueprint.")


def _has_foreign_base(house: House, one: Definition) -> bool:
    bases = {base for relative in house.family(one) for base in house.bases(relative)}
    return bool(bases - set(house.classes) - {"NamedTuple", "Exception", "ABC", "Protocol"})
