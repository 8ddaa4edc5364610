"""Pictures among the results of tools: kept beside the session, shown to the model, told to callers by their hash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent import Picture
from tests.support.client import Client
from tests.support.model_server import ModelServer, answer, status, tool_call, tool_calls
from tests.support.pictures import PDF, data_url, png, sha256, stored, text

WORD = f"[image, image/png, {len(png())} bytes]"


def draw() -> Picture:
    """Draws a dot."""
    return Picture(png())


def two() -> list[Any]:
    """Draws two dots."""
    return ["Two dots.", Picture(png()), Picture(png(1))]


def measured() -> list[Any]:
    """Draws a dot, and measures it."""
    return [{"width": 1}, Picture(png())]


def text_file() -> Picture:
    """Draws nothing."""
    return Picture(PDF)


def turn(*tools: Callable[..., Any], name: str, **settings: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """The stored messages of a turn that calls this tool, the messages of its last request, and its events."""
    with Client(tool_call(name, {}, id="call_1"), answer("OK"), tools=tools, **settings) as client:
        session = client.create()
        events = list(client.stream(session))
        messages = client.messages(session)
        for message in messages:
            for part in message["content"] if isinstance(message["content"], list) else ():
                if "sha256" in part:
                    assert client.get(f"/sessions/{session}/files/{part['sha256']}").status_code == 200
        return messages, client.model.requests[-1]["messages"], events


def test_a_picture_is_kept_and_named_in_the_tool_s_message() -> None:
    messages, _, _ = turn(draw, name="draw")
    assert messages[2]["content"] == [text(WORD), stored(png())]


def test_the_model_gets_it_behind_the_results_as_a_message_of_the_user() -> None:
    _, sent, _ = turn(draw, name="draw")
    assert [one["role"] for one in sent] == ["user", "assistant", "tool", "assistant", "user"]
    assert sent[2] == {"role": "tool", "tool_call_id": "call_1", "content": WORD}
    assert sent[4]["content"] == [
        text("(These are the pictures of the results.)"),
        {"type": "image_url", "image_url": {"url": data_url(png())}},
    ]


def test_the_event_names_it() -> None:
    _, _, events = turn(draw, name="draw")
    (result,) = (event["data"] for event in events if event["type"] == "stream_tool_result")
    assert result == {"id": "call_1", "name": "draw", "result": WORD, "files": [stored(png())]}


def test_a_list_has_texts_and_pictures() -> None:
    messages, _, _ = turn(two, name="two")
    assert messages[2]["content"] == [text(f"Two dots.\n{WORD}\n{WORD}"), stored(png()), stored(png(1))]


def test_what_else_a_tool_gives_is_json() -> None:
    messages, _, _ = turn(measured, name="measured")
    assert messages[2]["content"] == [text('[{"width":1}]'), stored(png())]


def test_what_is_no_picture_is_an_error_that_the_model_is_told() -> None:
    messages, sent, _ = turn(text_file, name="text_file")
    assert messages[2]["is_error"] is True
    assert "must be JPEG, PNG, GIF or WebP" in sent[2]["content"]


def test_one_that_is_too_large_is_named_alone() -> None:
    messages, sent, _ = turn(draw, name="draw", max_file_bytes=10)
    assert messages[2]["content"] == WORD
    assert [one["role"] for one in sent] == ["user", "assistant", "tool"]


def test_the_beginning_stays_the_same_in_the_next_turn() -> None:
    with Client(tool_call("draw", {}), answer("OK"), answer("OK"), tools=[draw]) as client:
        session = client.create()
        client.run(session)
        client.run(session, "And now?")
        before, after = (request["messages"] for request in client.model.requests[-2:])
        assert after[: len(before)] == before


def test_pictures_of_several_calls_come_together() -> None:
    calls = tool_calls(("draw", {}), ("two", {}))
    with Client(calls, answer("OK"), tools=[draw, two]) as client:
        client.run(client.create())
        sent = client.model.requests[-1]["messages"]
        assert [one["role"] for one in sent] == ["user", "assistant", "tool", "tool", "assistant", "user"]
        assert [part["type"] for part in sent[-1]["content"]] == ["text", *["image_url"] * 3]


def test_a_model_that_takes_none_is_told_of_them() -> None:
    refusal = status(400, {"error": {"message": "images are not supported"}})
    with Client(tool_call("draw", {}), refusal, answer("OK"), tools=[draw]) as client:
        assert client.run(client.create()).status_code == 200
        sent = client.model.requests[-1]["messages"]
        assert [(one["role"], one["content"]) for one in sent[1:]] == [("assistant", ""), ("tool", WORD)]


def test_a_replay_tells_of_it(tmp_path: Any) -> None:
    from session_core.stores.files import FileStorage

    with ModelServer(tool_call("draw", {}, id="call_1"), answer("OK")) as model:
        events = []
        for _ in range(2):
            with Client(model=model, storage=FileStorage.open(str(tmp_path)), tools=[draw]) as client:
                ids = client.storage.page()[0]
                session = ids[0] if ids else client.create()
                stream = client.stream(session, Idempotency_Key="k")
                events.append([one["data"] for one in stream if one["type"] == "stream_tool_result"])
        assert events[0] == events[1] and events[0][0]["files"] == [stored(png())]


def test_a_copy_and_a_deletion_have_them_too() -> None:
    with Client(tool_call("draw", {}), answer("OK"), tools=[draw]) as client:
        session = client.create()
        client.run(session)
        copy = client.request("POST", "/sessions", {"copy_of": session}).json["id"]
        client.request("DELETE", f"/sessions/{session}")
        assert client.get(f"/sessions/{copy}/files/{sha256(png())}").data == png()
