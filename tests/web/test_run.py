"""The endpoints of a turn: the bodies and keys that they take, and cancel."""

from __future__ import annotations

import pytest

from tests.support.client import Client, error_of, json_of
from tests.support.model_server import answer

# --- turns ---


def test_run_answers_with_the_stored_message(anywhere: Client) -> None:
    session_id = anywhere.create()
    anywhere.model.then(answer("The answer", " is 4."))
    response = anywhere.run(session_id, "What is 2+2?")
    assert response.status_code == 200
    message = anywhere.messages(session_id)[-1]
    assert json_of(response) == {"message": message}
    assert message["role"], message["content"] == ("assistant", "The answer is 4.")


def test_fields_not_known_are_ignored(client: Client) -> None:
    body = {"message": "Hi", "stream": True, "nested": {"a": [1, None, 1.5]}}
    assert client.request("POST", f"/sessions/{client.create()}/run", body).status_code == 200
    assert client.model.requests[-1]["messages"][-1] == {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b'"text"',
        b"null",
        b"{}",
        b'{"Message": "Hi"}',
        b'{"message": null}',
        b'{"message": 5}',
        b'{"message": ["Hi"]}',
        b'{"message": {"text": "Hi"}}',
        b'{"message": ""}',
        b'{"message": " \\n\\t\\u00a0"}',
        b'{"message": "Hi", "n": NaN}',
        b'{"message": "Hi", "n": -Infinity}',
        b'{"message": "\\ud800"}',
        b'{"message": "Hi", "other": "\\udc00 \\ud800"}',
        b'{"message": "Hi", "\\udfff": 1}',
        b'{"message": "Hi"',
        b'{"message": "Hi"} and more',
        b'{"message": "caf\xe9"}',
        '{"message": "Hi"}'.encode("utf-16"),
        b'{"message": "Hi", "deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    with Client() as client:
        session_id = client.create()
        for path in ("run", "run_stream"):
            response = client.request("POST", f"/sessions/{session_id}/{path}", body)
            assert error_of(response) == (400, "invalid_request")
        assert client.messages(session_id) == []
        assert client.model.requests == []


TEXTS = [
    "é ü ß 漢字 😀",
    "a line\u2028separator and\u2029paragraphs",
    "\x00 \x1b[31m \x7f",
    'quotes " and \\ backslashes',
    "data: [DONE]\n\ndata: {}\n\n",
    "\r\n \r \n",
    "\ufffd \ufeff",
    " space around ",
    "</script><img onerror=alert(1)>",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_and_goes_unharmed(anywhere: Client, text: str) -> None:
    session_id = anywhere.create()
    text = f"text: {text}"
    anywhere.model.then(answer(text))
    assert json_of(anywhere.run(session_id, text))["message"]["content"] == text
    assert [message["content"] for message in anywhere.messages(session_id)] == [text, text]
    assert anywhere.model.requests[0]["messages"][-1]["content"] == text


def test_characters_are_sent_as_themselves(client: Client) -> None:
    session_id = client.create()
    client.model.then(answer("café 😀"), answer("café 😀"))
    assert "café 😀" in client.run(session_id, "Straße").text
    assert "Straße" in client.get(f"/sessions/{session_id}").text
    assert "café 😀" in b"".join(iter(client.stream(session_id, "Straße").write, b"")).decode()


def test_a_surrogate_pair_in_escapes_is_a_character(client: Client) -> None:
    session_id = client.create()
    client.request("POST", f"/sessions/{session_id}/run", rb'{"message": "\ud83d\ude00"}')
    assert client.messages(session_id)[0]["content"] == "😀"


def test_a_body_of_exactly_1_mib_is_taken(client: Client) -> None:
    body = b'{"message": "%b"}' % (b"x" * ((1 << 20) - len(b'{"message": ""}')))
    assert len(body) == 1 << 20
    assert client.request("POST", f"/sessions/{client.create()}/run", body).status_code == 200


@pytest.mark.parametrize("path", ["run", "run_stream"])
def test_a_malformed_idempotency_key_is_refused(path: str) -> None:
    with Client() as client:
        url = f"/sessions/{client.create()}/{path}"
        for key in ("", " ", "two words", "é", "x" * 256, "tab\there", "\x7f"):
            environ = {"HTTP_IDEMPOTENCY_KEY": key}
            response = client.request("POST", url, {"message": "Hi"}, environ_overrides=environ)
            assert error_of(response) == (400, "invalid_request"), key


def test_an_idempotency_key_of_255_characters_is_taken(client: Client) -> None:
    assert client.run(client.create(), Idempotency_Key="~" * 255).status_code == 200


# --- cancel, health, ready ---


def test_cancel_says_false_where_nothing_runs_and_may_be_repeated(anywhere: Client) -> None:
    session_id = anywhere.create()
    assert [anywhere.cancel(session_id) for _ in range(3)] == [False] * 3
    anywhere.run(session_id)
    assert [anywhere.cancel(session_id) for _ in range(3)] == [False] * 3
    assert len(anywhere.messages(session_id)) == 2


def test_cancel_needs_no_body_and_takes_an_object(client: Client) -> None:
    path = f"/sessions/{client.create()}/cancel"
    assert json_of(client.request("POST", path, {})) == {"cancelled": False}
