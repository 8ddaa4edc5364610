"""Session files that a later version, or another program, has written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import Client
from tests.support.model_server import whole
from tests.support.sessions import patch, post, texts


def test_fields_that_we_do_not_know_are_kept(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        post(client, session, message="one")
        path = tmp_path / f"{session}.json"
        value = json.loads(path.read_text())
        value["messages"][0]["rating"] = 5
        path.write_text(json.dumps({**value, "tags": ["x"], "pinned": True}))
        patch(client, session, title="T")
        post(client, session, message="two")
        patch(client, session, title=None)
        value = json.loads(path.read_text())
        assert (value["tags"], value["pinned"], value["messages"][0]["rating"]) == (["x"], True, 5)


@pytest.mark.parametrize("tear", [False, True])
def test_a_byte_order_mark_and_crlf_are_understood(tmp_path: Path, tear: bool) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        session = client.create()
        post(client, session, message="one")
        path = tmp_path / f"{session}.json"
        data = path.read_bytes().replace(b"\n", b"\r\n")
        path.write_bytes(b"\xef\xbb\xbf" + (data[:-30] if tear else data))
        assert texts(client, session) == ["one", "OK"] or tear
        post(client, session, message="two")
        assert texts(client, session)[-2:] == ["two", "OK"]
        assert path.read_bytes().startswith(b'{"id"') and b"\r" not in path.read_bytes()


def test_a_whole_answer_with_usage_is_counted() -> None:
    with Client(stream=False) as client:
        client.model.then(
            whole({"choices": [{"message": {"content": "OK"}, "finish_reason": "stop"}], "usage": {"a": 1}})
        )
        session = client.create()
        client.run(session)
        assert client.session(session)["usage"] == {"a": 1}
