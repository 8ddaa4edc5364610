"""The tables of docs/reference.md say what the code does, and the documents name what is there."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from agent import Agent
from session_core.web.errors import ERRORS
from session_core.web.page_files import PAGE_FILE_ROUTES
from session_core.web.settings import FLAGS
from session_server import Settings, create_app
from storage import MemoryStorage
from tests.program.architecture import NO_WORDS, ROOMS, room_table
from tests.program.house import CORE, FLOORS
from tests.program.limits import limits
from tests.support.server import ROOT

REFERENCE = (ROOT / "docs" / "reference.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table under a heading, their cells without backquotes."""
    section = REFERENCE.split(f"# {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split(" | ")] for row in rows[1:]]


def test_every_flag_is_in_the_table_with_its_default() -> None:
    rows = {row[0].removeprefix("-"): row for row in table("Flags")}
    assert list(rows) == list(FLAGS)
    for field in fields(Settings):
        default = rows[field.name][-1].strip("| ")
        if isinstance(field.default, bool):
            assert default == ("true" if field.default else "off")
        elif isinstance(field.default, int | float) and field.name != "max_streams":
            assert float(default) == field.default
        elif field.name in ("host", "model", "log_level"):
            assert default == field.default


def test_every_variable_that_a_flag_has_beside_its_own_is_in_the_table() -> None:
    rows = {row[0].removeprefix("-"): row[1] for row in table("Flags")}
    for name, (_, _, variables) in FLAGS.items():
        for variable in variables:
            assert variable in rows[name]


def test_every_error_is_in_the_table_under_its_status() -> None:
    told = {code: int(status) for status, codes in table("Errors") for code in codes.split(", ")}
    assert told == {code: status for code, (status, _) in ERRORS.items()}


def test_every_route_is_in_the_table() -> None:
    requests = {request for row in table("Endpoints") for request in row[0].split(", ")}
    agent = Agent(api_key="none", base_url="http://127.0.0.1:1/v1", model="m")
    app = create_app(MemoryStorage(), agent, Settings(metrics=True))
    routes = set()
    for rule in app.url_map.iter_rules():
        assert rule.methods is not None
        for method in rule.methods - {"HEAD", "OPTIONS"}:
            path = re.sub("<(?:session_id|path:model)>", "{id}", rule.rule)
            path = re.sub(r"<(?:string\(.*\):)?(id|item_id|message_id|sha256)>", r"{\1}", path)
            routes.add(f"{method} {path}")
    assert requests == routes - {f"GET {route}" for route in PAGE_FILE_ROUTES}


def test_every_event_is_in_the_table() -> None:
    types = set(re.findall(r'"(stream_[a-z_]+)"', (ROOT / "session_core" / "web" / "events.py").read_text()))
    assert types | {"error"} == {row[0] for row in table("Events")}


def test_every_bound_is_in_the_table_with_its_constant_and_room() -> None:
    told = [((room, name), value) for _, value, name, room in table("All bounds")]
    assert len(dict(told)) == len(told)
    assert dict(told) == limits(ROOT)


def test_no_two_bounds_are_told_in_the_same_words() -> None:
    words = [row[0] for row in table("All bounds")]
    assert [one for one in words if words.count(one) > 1] == []
    assert NO_WORDS not in words


DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests|docs|benchmarks|session_core)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[\w-]+)?\)", text):
        assert (document.parent / target).exists(), target


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_architecture_has_every_room_with_its_sentence() -> None:
    found = ROOMS.search(ARCHITECTURE)
    assert found and found[0] == room_table(ROOT)


def test_the_drawing_has_every_place_on_its_floor() -> None:
    drawing = ARCHITECTURE.split("```")[1]
    drawn = {name: int(floor) for floor, name in re.findall(r"^(\d) +(\S+)", drawing, re.MULTILINE)}
    assert drawn == {_path_of(place): floor for place, floor in FLOORS.items()}


def _path_of(place: str) -> str:
    path = place.replace(".", "/")
    return f"{path}/" if (ROOT / path).is_dir() else f"{path}.py"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_that_a_document_places_in_a_room_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    places = re.findall(r"`([\w.]+)`(?: \([^)]*\))? in\s+`([\w/.]+[.](?:py|js|json))`", text)
    for name, path in places:
        file = ROOT / path if (ROOT / path).exists() else ROOT / CORE / path
        assert name.rpartition(".")[2] in file.read_text(encoding="utf-8"), f"{name} in {path}"


def test_each_outside_word_leads_to_a_room() -> None:
    rows = ARCHITECTURE.split("## From outside words to the code")[1].split("\n|")[3:]
    assert len(rows) > 20
    assert [row for row in rows if not re.search(r"`[\w/]+[.]py`", row.split(" | ")[1])] == []


def test_every_anchor_of_a_link_is_there() -> None:
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)#([\w-]+)\)", document.read_text(encoding="utf-8")):
            text = (document.parent / target if target else document).read_text(encoding="utf-8")
            headings = {
                line.lstrip("# ").lower().replace(" ", "-") for line in text.splitlines() if line.startswith("#")
            }
            assert anchor in headings, f"{document.name}: {target}#{anchor}"


def test_the_readme_is_short() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert len(readme.split("transcript: begin")[1].split("transcript: end")[0].strip().splitlines()) <= 40


def test_the_example_of_embedding_works_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = (ROOT / "docs" / "embedding.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102
    assert list(tmp_path.glob("sessions/session-*.json"))
    names["agent"].close()
