"""The table of a message's fields in `docs/files.md`, held against the type and the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from session_core.data.message import Content, StoredMessage, content_text, is_content
from session_core.data.session import session_from
from session_core.stores.file_layout import layout
from session_core.stores.files import FileStorage
from tests.support.client import Client

ROOT = Path(__file__).parent.parent.parent
SHOWN = {"yes", "with `-show_reasoning`"}
TYPES = {str: "text", int: "number", bool: "boolean", dict: "object", list: "list", Content: "text or parts"}
MESSAGE: dict[str, Any] = {
    **{"id": "msg-1", "content": "Hi", "created_at": "2026-01-31T12:34:56Z", "idempotency_key": "k"},
    **{
        "previous_error": "model_error",
        "previous_refused": True,
        "replaces": "msg-0",
        "history": [],
        "tool_calls": [],
    },
    **{"reasoning": "hm", "model": "m", "provider_metadata": {}, "status": "cancelled", "reason": "cancelled"},
    **{"usage": {}, "finish_reason": "stop", "tool_call_id": "c", "name": "n", "is_error": True, "attempt": 2},
    **{"continues": True, "leaves_out": [], "after": "msg-1", "client_id": "m1", "terms": "t", "imported": True},
    **{"pending": {}, "answers_digest": "d", "request": {}, "deltas": [2], "response": {}, "recovery": 1},
    **{"steered": True, "added": True},
}


def rows() -> dict[str, list[str]]:
    """The cells of the table behind each field's name."""
    text = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    part = text.split("## The fields of a message")[1].split("\n## ")[0]
    return {row[0]: row[1].split(" | ") for row in re.findall(r"^\| `(\w+)` \| (.*) \|$", part, re.MULTILINE)}


def test_the_document_has_the_fields_of_the_type() -> None:
    hints = get_type_hints(StoredMessage)
    assert {name: row[0] for name, row in rows().items()} == {
        name: TYPES[getattr(hint, "__origin__", hint)] for name, hint in hints.items()
    }
    assert MESSAGE.keys() | {"role"} == hints.keys()


def test_the_text_of_a_message_is_that_of_all_its_text_parts() -> None:
    picture = {"type": "image", "sha256": "0" * 64, "media_type": "image/png", "size": 9}
    assert content_text([{"type": "text", "text": "What "}, picture, {"type": "text", "text": "is it?"}]) == (
        "What is it?"
    )


@pytest.mark.parametrize(
    "part",
    [
        None,
        {"text": "x"},
        {"type": "text", "text": 1},
        {"type": "image", "sha256": "../" + "0" * 61, "media_type": "image/png", "size": 9},
        {"type": "file", "sha256": "0" * 64, "media_type": None, "size": 9},
        {"type": "file", "sha256": "0" * 64, "media_type": "text/plain", "size": "9"},
        {"type": "other", "sha256": "0" * 64},
    ],
)
def test_a_part_of_another_form_is_no_content(part: Any) -> None:
    assert not is_content([part])


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_callers_see_the_fields_that_the_document_says(role: str, tmp_path: Path) -> None:
    value = {"id": "session-1", "created_at": "t", "messages": [{**MESSAGE, "role": role}], "updated_at": "t"}
    (tmp_path / "session-1.json").write_bytes(layout(session_from("session-1", value)))
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        (shown,) = client.messages("session-1")
        assert shown.keys() == {name for name, row in rows().items() if row[4] in SHOWN}
