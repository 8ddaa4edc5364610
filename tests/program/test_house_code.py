"""Functions and classes obey the laws of the house, and the checks that say so can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.program.house_code import (
    USED_FROM_OUTSIDE,
    House,
    busy_constructors,
    complex_functions,
    crowded_classes,
    dead_code,
    handed_on,
)
from tests.support.server import ROOT

# What does not obey yet. Each list is exact: what is mended leaves it.
COMPLEX: dict[str, int] = {}
CROWDED: dict[str, int] = {}
HANDED_ON: set[str] = set()
BUSY: set[str] = set()
DEAD: set[str] = set()


@pytest.fixture(scope="module")
def house() -> House:
    return House(ROOT)


def test_no_function_is_too_complex(house: House) -> None:
    assert complex_functions(house) == COMPLEX


def test_no_class_has_too_many_attributes(house: House) -> None:
    assert crowded_classes(house) == CROWDED


def test_no_flag_or_callback_passes_through_more_than_two_signatures(house: House) -> None:
    assert handed_on(house) == HANDED_ON


def test_no_constructor_does_input_or_output_or_starts_a_thread(house: House) -> None:
    assert busy_constructors(house) == BUSY


def test_no_code_is_dead(house: House) -> None:
    assert dead_code(house, USED_FROM_OUTSIDE) == DEAD


def test_what_is_used_from_outside_is_there_and_needs_to_be_named(house: House) -> None:
    unnamed = {name.rpartition(".")[2] for name in dead_code(house, set())}
    assert unnamed >= USED_FROM_OUTSIDE


# --- each law can fail ---


def built(root: Path, **rooms: str) -> House:
    """A house of front doors, each with these lines."""
    for name, text in rooms.items():
        (root / f"{name}.py").write_text(text, encoding="utf-8")
    return House(root)


BRANCHES = {
    "if": "    if a: pass\n",
    "elif": "    if a: pass\n    elif b: pass\n",
    "for": "    for a in b: pass\n",
    "while": "    while a: pass\n",
    "except": "    try: pass\n    except A: pass\n",
    "and": "    a and b and c\n",
    "or": "    a or b\n",
    "if else": "    a if b else c\n",
    "comprehension": "    [a for a in b if c]\n",
    "case": "    match a:\n        case 1: pass\n        case 2: pass\n",
    "assert": "    assert a\n",
    "a function within": "    def g():\n        if a: pass\n",
}
COSTS = {"elif": 2, "and": 2, "comprehension": 2, "case": 2}


@pytest.mark.parametrize("branch", BRANCHES)
def test_each_kind_of_branch_counts(tmp_path: Path, branch: str) -> None:
    times = 15 // COSTS.get(branch, 1)
    cost = 1 + times * COSTS.get(branch, 1)
    house = built(tmp_path, agent="def f():\n" + BRANCHES[branch] * times)
    assert complex_functions(house) == ({"agent.f": cost} if cost > 15 else {})
    house = built(tmp_path, agent="def f():\n" + BRANCHES[branch] * 16)
    assert complex_functions(house) == {"agent.f": 1 + 16 * COSTS.get(branch, 1)}


def test_a_function_of_complexity_15_is_allowed(tmp_path: Path) -> None:
    assert complex_functions(built(tmp_path, agent="def f():\n" + BRANCHES["if"] * 14)) == {}


def class_of(name: str, *attributes: str) -> str:
    lines = "".join(f"        self.{attribute} = 1\n" for attribute in attributes)
    return f"class {name}:\n    def __init__(self):\n{lines}"


LETTERS = "abcdefghijklm"


def test_a_class_with_13_attributes_is_named_and_one_with_12_is_not(tmp_path: Path) -> None:
    house = built(tmp_path, agent=class_of("One", *LETTERS) + class_of("Other", *LETTERS[:12]))
    assert crowded_classes(house) == {"agent.One": 13}


def test_attributes_that_another_room_gives_by_inheritance_count(tmp_path: Path) -> None:
    parent = class_of("Parent", *LETTERS[:7])
    child = "from storage import Parent\n" + class_of("Child(Parent)", *LETTERS[6:])
    assert crowded_classes(built(tmp_path, storage=parent, agent=child)) == {"agent.Child": 13}


def test_attributes_that_methods_add_and_fields_of_a_dataclass_count(tmp_path: Path) -> None:
    fields = "".join(f"    {letter}: int\n" for letter in LETTERS[:12])
    text = f"@dataclass\nclass One:\n    KIND: ClassVar[int] = 1\n{fields}    def f(self):\n        self.z = 1\n"
    assert crowded_classes(built(tmp_path, agent=text)) == {"agent.One": 13}


@pytest.mark.parametrize(
    "head", ["@dataclass(frozen=True)\nclass One:", "class One(NamedTuple):", "class One(TypedDict):"]
)
def test_fields_of_a_value_do_not_count(tmp_path: Path, head: str) -> None:
    fields = "".join(f"    {letter}: int\n" for letter in LETTERS)
    assert crowded_classes(built(tmp_path, agent=f"{head}\n{fields}")) == {}


THREE = {
    "a flag": "def first(x: bool): second(x)\ndef second(y: bool): third(z=y)\ndef third(z: bool): print(z)\n",
    "a callback": "def first(x: Callable[[], int]): second(x)\ndef second(y: Call): third(z=y)\n"
    "Call = Callable[[], int]\n"
    "def third(z: Call | None): print(z)\n",
}


@pytest.mark.parametrize("kind", THREE)
def test_what_is_handed_on_through_three_signatures_is_named(tmp_path: Path, kind: str) -> None:
    assert handed_on(built(tmp_path, agent=THREE[kind])) == {"agent.first(x) > agent.second(y) > agent.third(z)"}


def test_it_is_followed_through_methods_constructors_and_rooms(tmp_path: Path) -> None:
    store = "class Store:\n    def __init__(self, wait: bool):\n        self.wait = wait\n"
    text = (
        "from storage import Store\n"
        "class Agent:\n"
        "    def run(self, wait: bool): self._run(wait)\n"
        "    def _run(self, wait: bool): Store(wait=wait)\n"
    )
    assert handed_on(built(tmp_path, storage=store, agent=text)) == {
        "agent.Agent.run(wait) > agent.Agent._run(wait) > storage.Store.__init__(wait)"
    }


@pytest.mark.parametrize(
    "text",
    [
        "def first(x: bool): second(x)\ndef second(y: bool): print(y)\n",
        "def first(x: bool): second(x)\ndef second(y: bool):\n    if y: third(y)\ndef third(z: bool): print(z)\n",
        "def first(x: str): second(x)\ndef second(y: str): third(y)\ndef third(z: str): print(z)\n",
    ],
    ids=["two signatures", "one that uses it", "neither a flag nor a callback"],
)
def test_other_parameters_may_be_handed_on(tmp_path: Path, text: str) -> None:
    assert handed_on(built(tmp_path, agent=text)) == set()


@pytest.mark.parametrize(
    "call", ["open('x')", "threading.Thread(target=f).start()", "path.mkdir()", "subprocess.Popen([])"]
)
@pytest.mark.parametrize("where", ["itself", "in a method"])
def test_a_constructor_that_does_something_outside_is_named(tmp_path: Path, call: str, where: str) -> None:
    first, then = (call, "pass") if where == "itself" else ("self._more()", call)
    text = f"class A:\n    def __init__(self):\n        {first}\n    def _more(self):\n        {then}\n"
    found = busy_constructors(built(tmp_path, agent=text))
    assert found == {f"agent.A.__init__ calls {call.rpartition('(')[0]}"}


def test_a_method_may_do_something_outside(tmp_path: Path) -> None:
    text = "class A:\n    def __init__(self):\n        self.x = 1\n    def start(self):\n        open('x')\n"
    assert busy_constructors(built(tmp_path, agent=text)) == set()


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("def f(): f()\n", "agent.f"),
        ("class A: pass\n", "agent.A"),
        ("class A:\n    def f(self): pass\nA()\n", "agent.A.f"),
        ("LIMIT = 1\n", "agent.LIMIT"),
        ("LIMIT: int = 1\n", "agent.LIMIT"),
        ("class A:\n    def __init__(self):\n        self.x = 1\nA()\n", "agent.A.x"),
        ("@dataclass\nclass A:\n    x: int\nA(1)\n", "agent.A.x"),
    ],
)
def test_what_nothing_names_is_dead(tmp_path: Path, text: str, dead: str) -> None:
    assert dead_code(built(tmp_path, agent=text), set()) == {dead}
    assert dead_code(built(tmp_path, agent=text), {dead.rpartition(".")[2]}) == set()


@pytest.mark.parametrize(
    "text",
    [
        "def f(): pass\n\nf()\n",
        "import http.server\nclass A(http.server.Handler):\n    def do_GET(self): pass\nA()\n",
        "class A:\n    def __len__(self): return 1\nA()\n",
        "def f(): pass\ngetattr(x, 'f')\n",
        "@blueprint.get('/')\ndef f(): pass\n",
    ],
    ids=["called", "called by a library", "called by Python", "named in a text", "a route"],
)
def test_what_is_named_is_alive(tmp_path: Path, text: str) -> None:
    assert dead_code(built(tmp_path, agent=text), set()) == set()


def test_what_another_room_names_is_alive(tmp_path: Path) -> None:
    assert (
        dead_code(built(tmp_path, storage="def f(): pass\n", agent="import storage\nstorage.f()\n"), set()) == set()
    )
