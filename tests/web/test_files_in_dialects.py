"""Pictures and files in what OpenAI's clients and the AI SDK send, and in the transcripts that they resend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import TestResponse

from session_core.data.file_kinds import MAX_FILES
from session_core.web.ui_messages import UI_MESSAGES
from tests.support.client import Client, json_of
from tests.support.model_server import answer
from tests.support.pictures import PDF, data_url, png, sha256, stored, text

LARGE = 3 << 20  # bytes of a picture that no other body could hold


@pytest.fixture
def client() -> Iterator[Client]:
    with Client(default=answer("OK")) as client:
        yield client


# --- Chat Completions ---


def picture(data: bytes) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def complete(client: Client, *messages: Any, session: str | None = "chat") -> TestResponse:
    headers = {"X-Session-Id": session} if session else {}
    return client.request("POST", "/v1/chat/completions", {"messages": list(messages)}, headers)


def conversation(client: Client, response: TestResponse) -> list[Any]:
    messages: list[Any] = client.messages(response.headers["X-Session-Id"])
    return messages


def test_a_picture_of_a_completion_is_stored_once(client: Client) -> None:
    response = complete(client, user(text("What?"), picture(png())))
    assert response.status_code == 200, response.text
    assert conversation(client, response)[0]["content"] == [text("What?"), stored(png())]
    session = response.headers["X-Session-Id"]
    assert client.get(f"/sessions/{session}/files/{sha256(png())}").data == png()


@pytest.mark.parametrize("session", ["chat", None])
def test_a_completion_has_files(client: Client, session: str | None) -> None:
    pdf = {"type": "file", "file": {"filename": "x.pdf", "file_data": data_url(PDF, "application/pdf")}}
    assert complete(client, user(text("Read"), pdf), session=session).status_code == 200
    assert client.model.requests[-1]["messages"][-1]["content"][1] == pdf


@pytest.mark.parametrize("session", ["chat", None])
def test_a_completion_may_be_as_large_as_its_pictures(client: Client, session: str | None) -> None:
    pictures = [png(shade, LARGE) for shade in range(3)]
    assert complete(client, user(*map(picture, pictures)), session=session).status_code == 200
    assert len(client.model.requests[-1]["messages"][-1]["content"]) == 3


@pytest.mark.parametrize("session", ["chat", None])
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/x.png"}},
        {"type": "image_url", "image_url": "https://example.org/x.png"},
        {"type": "image_url", "image_url": {"url": "data:image/png,x"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,###"}},
        {"type": "image_url", "image_url": {"url": f"/sessions/session-x/files/{'0' * 64}"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "file", "file": {"file_data": "https://example.org/x.pdf"}},
    ],
)
def test_an_address_and_bad_data_are_refused_in_a_completion(
    client: Client, part: dict[str, Any], session: str | None
) -> None:
    response = complete(client, user(text("What?"), part), session=session)
    assert response.status_code == 400
    assert json_of(response)["error"]["type"] == "invalid_request_error"
    assert not client.model.requests


def test_a_transcript_with_the_same_pictures_goes_on(client: Client) -> None:
    question = user(text("What?"), picture(png()))
    complete(client, question)
    response = complete(client, question, {"role": "assistant", "content": "OK"}, user(text("And now?")))
    assert [one["content"] for one in conversation(client, response)] == [
        [text("What?"), stored(png())],
        "OK",
        "And now?",
        "OK",
    ]


@pytest.mark.parametrize("other", [[picture(png(1))], [], [picture(png()), picture(png())]])
def test_the_same_text_with_another_picture_is_an_edit(client: Client, other: list[Any]) -> None:
    complete(client, user(text("What?"), picture(png())))
    edited = user(text("What?"), *other)
    response = complete(client, edited, {"role": "assistant", "content": "OK"}, user(text("And now?")))
    assert response.status_code == 200, response.text
    found = conversation(client, response)
    assert [one["role"] for one in found] == ["user", "assistant", "user", "assistant"]
    expected = [text("What?"), *[stored(png(1) if part == picture(png(1)) else png()) for part in other]]
    assert found[0]["content"] == (expected if other else "What?")
    sent = client.model.requests[-1]["messages"]
    assert sent[0]["content"] == (edited["content"] if other else "What?")


def test_the_same_question_with_another_picture_is_no_retry(client: Client) -> None:
    complete(client, user(text("What?"), picture(png())))
    response = complete(client, user(text("What?"), picture(png(1))))
    assert [one["role"] for one in conversation(client, response)] == ["user", "assistant"] * 2


def test_an_address_of_this_server_in_a_transcript_is_the_stored_picture(client: Client) -> None:
    first = complete(client, user(text("What?"), picture(png())))
    session = first.headers["X-Session-Id"]
    address = f"http://localhost/sessions/{session}/files/{sha256(png())}"
    own = user(text("What?"), {"type": "image_url", "image_url": {"url": address}})
    response = complete(client, own, {"role": "assistant", "content": "OK"}, user(text("And now?")))
    assert len(conversation(client, response)) == 4
    again = user({"type": "image_url", "image_url": {"url": address}}, text("Once more"))
    assert complete(client, again).status_code == 200
    assert client.model.requests[-1]["messages"][-1]["content"][0] == picture(png())


def test_a_picture_in_the_client_s_copy_of_an_answer_is_no_error(client: Client) -> None:
    answer = {"role": "assistant", "content": [text("Here."), picture(png(size=LARGE))]}
    response = complete(client, user(text("Draw")), answer, user(text("Thanks")))
    assert response.status_code == 200, response.text


# --- the AI SDK ---


def file(data: bytes, media_type: str = "image/png", **more: Any) -> dict[str, Any]:
    return {"type": "file", "mediaType": media_type, "url": data_url(data, media_type), **more}


def question(*parts: Any, id: str = "q1") -> dict[str, Any]:
    return {"id": id, "role": "user", "parts": list(parts)}


def chat(client: Client, session: str, *messages: Any, **more: Any) -> TestResponse:
    body = {"id": session, "messages": list(messages), "trigger": "submit-message", **more}
    return client.request("POST", "/ui/chat", body)


def ui_messages(client: Client, session: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads(client.get(f"/sessions/{session}", Accept=UI_MESSAGES).data)
    return messages


def test_file_parts_are_stored_and_come_back_with_an_address_of_this_server(client: Client) -> None:
    session = client.create()
    sent = question(text("What?"), file(png(), filename="x.png"), file(b"a,b\n", "text/csv"))
    assert chat(client, session, sent).status_code == 200
    assert client.messages(session)[0]["content"] == [
        text("What?"),
        stored(png(), name="x.png"),
        stored(b"a,b\n", "text/csv"),
    ]
    asked = ui_messages(client, session)[0]["parts"]
    address = f"/sessions/{session}/files/{sha256(png())}"
    assert asked[1] == {"type": "file", "mediaType": "image/png", "url": address, "filename": "x.png"}
    assert client.get(address).data == png()


def test_what_came_back_is_the_stored_picture_when_it_is_sent_again(client: Client) -> None:
    session = client.create()
    chat(client, session, question(text("What?"), file(png())))
    known = ui_messages(client, session)
    assert chat(client, session, *known, question(text("And now?"), id="q2")).status_code == 200
    assert [one["role"] for one in client.messages(session)] == ["user", "assistant"] * 2
    moved = [{**part, "url": f"https://chat.example.org/api{part['url']}"} for part in known[0]["parts"][1:]]
    assert chat(client, session, *known, question(text("Again"), *moved, id="q3")).status_code == 200
    assert client.messages(session)[-2]["content"] == [text("Again"), stored(png())]


def test_a_retry_with_the_same_picture_is_the_same_turn_and_another_picture_an_edit(client: Client) -> None:
    session = client.create()
    sent = question(text("What?"), file(png()))
    first = chat(client, session, sent)
    again = chat(client, session, sent)
    assert again.headers.get("Idempotency-Replayed") == "true" or first.data == again.data
    assert len(client.messages(session)) == 2
    assert chat(client, session, question(text("What?"), file(png(1)))).status_code == 200
    assert [one["content"] for one in client.messages(session)] == [[text("What?"), stored(png(1))], "OK"]


def test_a_picture_alone_is_a_question(client: Client) -> None:
    session = client.create()
    assert chat(client, session, question(file(png()))).status_code == 200
    assert client.model.requests[-1]["messages"][-1]["content"] == [picture(png())]


@pytest.mark.parametrize(
    "parts, status",
    [
        ([{"type": "file", "mediaType": "image/png", "url": "https://example.org/x.png"}], 400),
        ([{"type": "file", "mediaType": "image/png", "url": "data:image/png,x"}], 400),
        ([{"type": "file", "mediaType": "image/png"}], 400),
        ([file(png(), "image/jpeg")], 400),
        ([file(b"Hello", "image/png")], 400),
        ([file(png())] * (MAX_FILES + 1), 400),
        ([{"type": "file", "url": f"/sessions/session-x/files/{'0' * 64}"}], 400),
    ],
)
def test_bad_file_parts_are_refused_in_a_sentence(client: Client, parts: list[Any], status: int) -> None:
    session = client.create()
    response = chat(client, session, question(*parts))
    assert response.status_code == status
    assert response.text.endswith(".")
    assert client.messages(session) == []


def test_a_body_of_the_ai_sdk_may_be_as_large_as_its_pictures(client: Client) -> None:
    session = client.create()
    assert chat(client, session, question(*(file(png(shade, LARGE)) for shade in range(3)))).status_code == 200


def test_a_large_result_of_a_client_s_tool_is_no_picture(client: Client) -> None:
    part = {"type": "dynamic-tool", "toolCallId": "c", "state": "output-available"}
    said = {"id": "a", "role": "assistant", "parts": [{**part, "output": {"data": "a" * (2 << 20)}}]}
    response = chat(client, client.create(), question(text("Hi")), said, question(text("And?"), id="q2"))
    assert response.status_code == 413
