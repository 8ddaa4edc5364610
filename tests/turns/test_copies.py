"""Sessions that begin as a copy or an import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from storage import timestamp
from tests.support.client import Client, error_of, json_of, storages
from tests.support.model_server import ModelServer, answer, status, tool_call
from tests.support.pictures import image, png, sha256, text
from tests.support.sessions import asked, post, texts
from tests.support.thinking_servers import SERVERS
from tests.support.well_formed import assert_well_formed


def test_a_copy_goes_its_own_way(anywhere: Client) -> None:
    session = json_of(anywhere.request("POST", "/sessions", {"model": "other", "title": "A", "system_prompt": "x"}))[
        "id"
    ]
    post(anywhere, session, message="one")
    post(anywhere, session, message="two")
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session, "title": "B"}))["id"]
    assert anywhere.messages(copy) == anywhere.messages(session)
    found = anywhere.session(copy)
    assert (found["title"], found["model"], found["system_prompt"]) == ("B", "other", "x")
    post(anywhere, copy, message="three")
    assert texts(anywhere, session) == ["one", "OK", "two", "OK"]
    assert texts(anywhere, copy) == ["one", "OK", "two", "OK", "three", "OK"]


def test_a_copy_ends_with_the_message_that_is_named(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    post(anywhere, session, message="two")
    until = anywhere.messages(session)[1]["id"]
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session, "until": until}))["id"]
    assert texts(anywhere, copy) == ["one", "OK"]


def test_a_copy_has_neither_what_was_replaced_nor_the_keys(anywhere: Client) -> None:
    session = anywhere.create()
    anywhere.run(session, "one", Idempotency_Key="k")
    post(anywhere, session, replaces=anywhere.messages(session)[0]["id"])
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session}))["id"]
    assert texts(anywhere, copy, "?replaced=true") == ["one", "OK"]
    anywhere.run(copy, "one", Idempotency_Key="k")
    assert texts(anywhere, copy) == ["one", "OK", "one", "OK"]


def test_a_copy_knows_which_question_was_refused(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    anywhere.model.then(status(400, {"error": {"message": "no"}}))
    anywhere.run(session, "bad")
    bad = anywhere.messages(session)[-1]["id"]
    post(anywhere, session, message="good", replaces=bad)
    for until, kept in ((bad, ["one", "OK"]), (None, ["one", "OK", "good", "OK"])):
        body = {"copy_of": session, **({"until": until} if until else {})}
        post(anywhere, json_of(anywhere.request("POST", "/sessions", body))["id"], message="next")
        assert [text for _, text in asked(anywhere)] == [*kept, "next"]


def test_a_key_of_the_other_session_is_free_in_its_copy(anywhere: Client) -> None:
    session = anywhere.create()
    anywhere.run(session, "one", Idempotency_Key="k")
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session}))["id"]
    assert anywhere.run(copy, "two", Idempotency_Key="k").status_code == 200
    assert texts(anywhere, copy) == ["one", "OK", "two", "OK"]


def test_a_copy_leaves_a_refused_question_out_as_its_original_does(anywhere: Client) -> None:
    session = anywhere.create()
    anywhere.model.then(status(413, {}))
    anywhere.run(session, "too much")
    copy = json_of(anywhere.request("POST", "/sessions", {"copy_of": session}))["id"]
    post(anywhere, copy, message="less")
    assert asked(anywhere) == [("user", "less")]


def test_a_copy_has_the_last_error_only_where_it_ends_with_it(anywhere: Client) -> None:
    session = anywhere.create()
    post(anywhere, session, message="one")
    anywhere.model.then(status(413, {}), status(413, {}))
    anywhere.run(session, "too much")
    _, answered, refused = (message["id"] for message in anywhere.messages(session))
    body = {"copy_of": session, "until": refused}
    whole = json_of(anywhere.request("POST", "/sessions", body))["id"]
    post(anywhere, whole, message="less")
    assert asked(anywhere) == [("user", "one"), ("assistant", "OK"), ("user", "less")]
    part = json_of(anywhere.request("POST", "/sessions", {**body, "until": answered}))["id"]
    again = anywhere.request("POST", f"/sessions/{part}/run", {"continue": True})
    assert error_of(again) == (409, "nothing_to_continue")


@pytest.mark.parametrize("body", [{"until": "msg-0"}, {"copy_of": "session-0", "messages": []}, {"copy_of": 7}])
def test_a_copy_that_is_not_clear_is_refused(anywhere: Client, body: dict[str, Any]) -> None:
    assert error_of(anywhere.request("POST", "/sessions", body)) == (400, "invalid_request")


def test_a_copy_of_nothing_is_not_found_and_until_must_be_there(anywhere: Client) -> None:
    assert error_of(anywhere.request("POST", "/sessions", {"copy_of": "session-0"})) == (404, "session_not_found")
    body = {"copy_of": anywhere.create(), "until": "msg-0"}
    assert error_of(anywhere.request("POST", "/sessions", body)) == (400, "invalid_request")


CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "1+1"}'}}


def test_what_a_session_gives_is_taken_in_again_as_it_was(anywhere: Client) -> None:
    session = anywhere.create()
    anywhere.model.then(tool_call("calculator", {"expression": "1+1"}, text="Let me see."), answer("2"))
    post(anywhere, session, message="one")
    messages = anywhere.messages(session)
    copy = json_of(anywhere.request("POST", "/sessions", {"messages": messages}))["id"]
    assert anywhere.messages(copy) == messages


def test_what_openai_clients_keep_is_taken_in(anywhere: Client) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "It is 2.", "refusal": None},
    ]
    session = json_of(anywhere.request("POST", "/sessions", {"messages": messages}))["id"]
    found = anywhere.session(session)
    assert found["system_prompt"] == "Be brief."
    assert [message["content"] for message in found["messages"]] == ["one two", "", "2", "It is 2."]
    assert len({message["id"] for message in found["messages"]}) == 4
    post(anywhere, session, message="And now?")
    assert asked(anywhere)[0] == ("system", "Be brief.")
    assert_well_formed(anywhere.model.requests[-1])


@pytest.mark.parametrize(
    "time",
    [
        "9999-99-99T99:99:99Z",
        "2026-02-30T12:00:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31",
        "٢٠٢٦-01-31T12:00:00Z",
        7,
        None,
    ],
)
def test_what_is_no_time_is_taken_in_with_a_new_one(anywhere: Client, time: object) -> None:
    before, messages = timestamp(), [{"role": "user", "content": "x", "created_at": time}]
    session = json_of(anywhere.request("POST", "/sessions", {"messages": messages}))["id"]
    assert before <= anywhere.messages(session)[0]["created_at"] <= timestamp()


@pytest.mark.parametrize("given", ["completed", "waiting", "running", "", 7, None])
def test_a_status_that_no_stored_answer_has_is_not_taken_in(anywhere: Client, given: object) -> None:
    answered = {"role": "assistant", "content": "y", "status": given, "reason": "z"}
    messages = [{"role": "user", "content": "x"}, answered]
    session = json_of(anywhere.request("POST", "/sessions", {"messages": messages}))["id"]
    assert anywhere.messages(session)[1].keys() == {"id", "role", "content", "created_at"}


@pytest.mark.parametrize("content, is_error", [("error: x", True), ("not executed: x", True), ("error: x", False)])
def test_whether_a_tool_failed_is_taken_in(anywhere: Client, content: str, is_error: bool) -> None:
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": content, "name": "calculator", "is_error": is_error},
    ]
    session = json_of(anywhere.request("POST", "/sessions", {"messages": messages}))["id"]
    found = anywhere.messages(session)[2]
    assert (found["content"], found["is_error"]) == (content, is_error)


ODD: dict[str, list[dict[str, Any]]] = {
    "a greeting first": [{"role": "assistant", "content": "Hello!"}],
    "a greeting with a call": [{"role": "assistant", "content": "", "tool_calls": [CALL]}],
    "calls without a result": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
    ],
    "one id twice": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ],
    "arguments that are broken": [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**CALL, "function": {"name": "a b", "arguments": "{"}}],
        },
    ],
    "questions in a row": [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}],
    "answers in a row": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y"},
        {"role": "assistant", "content": "z"},
    ],
    "an empty answer": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}],
    "nothing": [],
}


@pytest.mark.parametrize("messages", ODD.values(), ids=ODD)
@pytest.mark.parametrize("server", [name for name in SERVERS if name != "OpenRouter"])  # which misses nothing
def test_what_is_taken_in_can_be_talked_to_with_every_model_server(
    server: str, messages: list[dict[str, Any]]
) -> None:
    with ModelServer(default=SERVERS[server]()) as model, Client(model=model) as client:
        session = json_of(client.request("POST", "/sessions", {"messages": messages}))["id"]
        for number in range(2):
            assert client.run(session, f"What is 1+1? ({number})").status_code == 200
        for request in model.requests:
            assert_well_formed(request, extra_fields=True)
            assert request["messages"][0]["role"] == "user"


REFUSED: dict[str, tuple[Any, str]] = {
    "no list": ({"role": "user"}, "messages must be a list"),
    "no object": ([7], "messages[0]"),
    "an odd role": ([{"role": "user", "content": "x"}, {"role": "narrator", "content": "x"}], "messages[1]"),
    "a later system message": ([{"role": "user", "content": "x"}, {"role": "system", "content": "x"}], "messages[1]"),
    "an image": ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0]"),
    "no content": ([{"role": "user"}], "messages[0]"),
    "a blank question": ([{"role": "user", "content": " "}], "messages[0]"),
    "a call's id that is no text": ([{"role": "tool", "tool_call_id": ["c1"], "content": "2"}], "messages[0]"),
    "an orphaned result": ([{"role": "tool", "tool_call_id": "c9", "content": "2"}], "messages[0]"),
    "a call that is none": ([{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}], "messages[0]"),
    "calls that are no list": ([{"role": "assistant", "content": "", "tool_calls": "x"}], "messages[0]"),
    "a repeated id": ([{"id": "msg-1", "role": "user", "content": "x"}] * 2, "messages[1]"),
}


@pytest.mark.parametrize("messages, named", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_taken_in_is_refused_by_its_index(anywhere: Client, messages: Any, named: str) -> None:
    response = anywhere.request("POST", "/sessions", {"messages": messages})
    assert error_of(response) == (400, "invalid_request")
    assert named in json_of(response)["error"]
    assert json_of(anywhere.get("/sessions"))["sessions"] == []


def test_an_import_is_in_one_write(tmp_path: Path) -> None:
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        client.request("POST", "/sessions", {"messages": [{"role": "user", "content": "é"}] * 3})
        [path] = tmp_path.glob("session-*.json")
        assert [message["content"] for message in json.loads(path.read_text())["messages"]] == ["é"] * 3


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_copy_beside_the_end_of_its_source_has_its_pictures_or_is_none(kind: str, tmp_path: Path) -> None:
    with Client(storage=storages(tmp_path)[kind]()) as client:
        session, files = client.create(), client.storage.files
        post(client, session, message=[text("one"), image(png())])
        share, copies = files.share, []

        def late(source: str, copy: str, names: Any) -> None:
            assert client.request("DELETE", f"/sessions/{source}").status_code == 200
            share(source, copy, names)
            copies.append(copy)

        files.share = late  # type: ignore[method-assign]
        copy = client.request("POST", "/sessions", {"copy_of": session})
        assert error_of(copy) == (404, "session_not_found")
        assert json_of(client.get("/sessions")) == {"sessions": []}
        assert not list(tmp_path.glob("sessions/.*.files"))
        assert [files.read(one, sha256(png())) for one in copies] == [None]
