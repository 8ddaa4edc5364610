"""The laws of the house hold, and the checks that say so can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.program.house import (
    EXTRA_STATEMENTS,
    EXTRAS,
    HOUSE_STATEMENTS,
    broken_imports,
    broken_rooms,
    homeless_tests,
    house_size,
    kept_files,
    library_users,
    long_tests,
    rooms,
    unread_files,
)
from tests.support.server import ROOT, environment


def test_imports_go_down_the_floors() -> None:
    assert broken_imports(ROOT) == []


def test_rooms_are_small_and_say_their_subject() -> None:
    assert broken_rooms(ROOT) == []


def test_the_house_is_not_too_large() -> None:
    assert house_size(ROOT) <= HOUSE_STATEMENTS
    assert house_size(ROOT, "extras") <= EXTRA_STATEMENTS


def test_each_file_of_tests_has_one_subject() -> None:
    assert long_tests(ROOT) == {}


def test_tests_lie_as_the_rooms_do() -> None:
    assert homeless_tests(ROOT) == set()


def test_nothing_is_kept_that_nobody_reads() -> None:
    assert unread_files(ROOT) == []
    assert {"README.md", "setup.cfg", "session_core/web/page/index.html", ".ci/run"} <= set(kept_files(ROOT))


def test_every_room_is_seen() -> None:
    files = set((ROOT / "session_core").rglob("*.py"))
    files |= set(ROOT.glob("*.py")) - {ROOT / "setup.py"}
    assert set(rooms(ROOT).values()) == files


@pytest.mark.parametrize("library", EXTRAS)
def test_an_optional_library_stays_in_its_room(library: str) -> None:
    users = library_users(ROOT, library)
    assert users
    assert {user for user in users if not user.startswith(EXTRAS[library])} == set()


def test_a_start_imports_no_optional_room() -> None:
    script = (
        "import sys, session_server\n"
        "session_server.build_app()\n"
        f"optional = {[*EXTRAS, *EXTRAS.values()]!r}\n"
        "print([name for name in sys.modules if name.startswith(tuple(optional))])\n"
    )
    command = [sys.executable, "-c", script]
    env = environment({"SESSION_SERVER_DEMO": "true"})
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- each law can fail ---

SOUND = {
    "session_server.py": '"""The program."""\nfrom session_core.web.sessions import Api\n',
    "session_core/web/__init__.py": '"""HTTP."""\n',
    "session_core/web/sessions.py": '"""The endpoints."""\nfrom session_core.turns import turns\n',
    "session_core/turns/__init__.py": '"""Turns."""\n',
    "session_core/__init__.py": '"""The rooms."""\n',
    "session_core/turns/turns.py": '"""All turns."""\nimport agent\nimport session_core.stores.files\n',
    "agent.py": '"""A model."""\nfrom session_core.model.events import Chunk\n',
    "session_core/stores/__init__.py": '"""Stores."""\n',
    "session_core/stores/files.py": '"""Files."""\nfrom storage import Storage\n',
    "storage.py": '"""A store."""\n',
    "session_core/model/__init__.py": '"""The model server."""\n',
    "session_core/model/events.py": '"""Events."""\n',
}


def build(root: Path, changes: dict[str, str]) -> Path:
    for name, text in {**SOUND, **changes}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_sound_house_breaks_no_law(tmp_path: Path) -> None:
    root = build(tmp_path, {})
    assert (broken_imports(root), broken_rooms(root)) == ([], [])


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        (
            "storage.py",
            "from session_core.web.sessions import Api",
            "storage.py:2 imports Api from session_core.web.sessions, which goes up from floor 2",
        ),
        (
            "agent.py",
            "import session_core.stores.files",
            "agent.py:2 imports session_core.stores.files, which goes sideways",
        ),
        (
            "storage.py",
            "def f():\n    import session_core.model.events",
            "storage.py:3 imports session_core.model.events, which goes sideways",
        ),
        (
            "session_core/model/events.py",
            "from . import events",
            "session_core/model/events.py:2 imports ., which is relative",
        ),
        (
            "session_core/web/sessions.py",
            "from session_core.turns.turns import _x",
            "session_core/web/sessions.py:2 imports _x from session_core.turns.turns, which is private",
        ),
    ],
)
def test_an_import_that_breaks_the_law_is_named(tmp_path: Path, file: str, text: str, named: str) -> None:
    root = build(tmp_path, {file: f'"""A room."""\n{text}\n'})
    assert [line for line in broken_imports(root) if line.startswith(named)]


def test_a_circle_is_found(tmp_path: Path) -> None:
    one, other = '"""One."""\nfrom session_core.model.two import x\n', '"""Two."""\nimport session_core.model.one\n'
    root = build(tmp_path, {"session_core/model/one.py": one, "session_core/model/two.py": other})
    assert broken_imports(root) == [
        "session_core.model.one imports itself in a circle",
        "session_core.model.two imports itself in a circle",
    ]


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        (
            "session_core/web/sessions.py",
            '"""The endpoints."""\n' + "x = 1\n" * 350,
            "session_core.web.sessions has 351 lines",
        ),
        ("session_core/web/utils.py", '"""This and that."""\n', "session_core.web.utils is named after no subject"),
        (
            "session_core/web/sessions.py",
            '"""The endpoints. And more."""\n',
            "session_core.web.sessions does not begin with one sentence",
        ),
        ("session_core/web/sessions.py", "x = 1\n", "session_core.web.sessions does not begin with one sentence"),
        (
            "session_core/web/__init__.py",
            '"""HTTP."""\nimport session_core.web.sessions\n',
            "session_core/web/__init__.py holds more than its docstring",
        ),
        ("session_core/web/page/page.js", "x\n" * 351, "session_core/web/page/page.js has 351 lines"),
    ],
)
def test_a_room_that_breaks_the_law_is_named(tmp_path: Path, file: str, text: str, named: str) -> None:
    root = build(tmp_path, {file: text})
    assert [line for line in broken_rooms(root) if line.startswith(named)]


def test_a_library_outside_its_room_is_found(tmp_path: Path) -> None:
    root = build(tmp_path, {"storage.py": '"""A store."""\ndef f():\n    from redis.retry import Retry\n'})
    assert library_users(root, "redis") == {"storage"}


def test_statements_are_counted_and_those_of_extras_apart(tmp_path: Path) -> None:
    root = build(
        tmp_path, {"session_core/stores/redis_feed.py": '"""Events."""\nimport redis\nx = [\n1,\n]; y = 2\n'}
    )
    assert (house_size(root, "extras"), house_size(root) - house_size(build(tmp_path / "b", {}))) == (3, 3)


def test_a_long_file_of_tests_is_named_and_so_is_a_folder_without_its_package(tmp_path: Path) -> None:
    root = build(
        tmp_path, {"tests/web/test_a.py": "x\n" * 701, "tests/web/test_b.py": "x\n" * 700, "tests/wire/c.py": ""}
    )
    assert (long_tests(root), homeless_tests(root)) == ({"tests/web/test_a.py": 701}, {"wire"})


@pytest.mark.parametrize("committed", [True, False])
def test_a_file_that_nobody_reads_is_named(tmp_path: Path, committed: bool) -> None:
    root = build(tmp_path, {"large.json": "x" * (128 << 10), "larger.json": "x" * ((128 << 10) + 1), "a.whl": "x"})
    if committed:
        for command in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", "-C", str(root), *command], check=True)
        (root / "not-committed.whl").write_text("x", encoding="utf-8")
    assert sorted(unread_files(root)) == ["a.whl is made from something else", "larger.json has 131073 bytes"]
