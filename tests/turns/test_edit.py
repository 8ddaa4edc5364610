"""Sessions that people steer: their settings, edited questions, answers tried again, copies, imports, expiry."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_core.stores.files import FileStorage
from session_core.turns.event_log import Ended
from session_core.turns.expiry import Expiry
from session_core.turns.turn_request import TurnRequest
from storage import MemoryStorage, Storage, replaced_messages
from tests.support.client import Client, error_of, json_of, storages
from tests.support.model_server import STALL, ModelServer, answer, status, tool_call, wait, whole
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import TIMEOUT, Server, wait_until
from tests.support.thinking_servers import SERVERS
from tests.support.well_formed import assert_well_formed


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture(params=["memory", "files", pytest.param("redis", marks=NEEDED)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """Opens the same store as often as it is called; one in memory is a new one each time."""
    if request.param != "redis":
        return storages(tmp_path)[request.param]
    from session_core.stores.redis import RedisStorage

    server: RedisServer = request.getfixturevalue("redis")
    server.call("FLUSHALL")
    return lambda: RedisStorage(server.url)


@pytest.fixture
def client(store: Callable[[], Storage]) -> Iterator[Client]:
    with Client(storage=store(), models=("other",), default=answer("OK", usage={"total_tokens": 2})) as client:
        yield client


def post(client: Client, session: str, how: str = "run", **body: Any) -> Any:
    """A turn by its body. Gives the answer to `run`, or the events."""
    response = client.request("POST", f"/sessions/{session}/{how}", body)
    assert response.status_code == 200, response.text
    return json_of(response)["message"] if how == "run" else response.text


def asked(client: Client, number: int = -1) -> list[tuple[str, str]]:
    """Role and text of the messages in one request to the model."""
    return [(message["role"], message["content"]) for message in client.model.requests[number]["messages"]]


def texts(client: Client, session: str, query: str = "") -> list[str]:
    return [message["content"] for message in json_of(client.get(f"/sessions/{session}{query}"))["messages"]]


def patch(client: Client, session: str, **settings: Any) -> Any:
    response = client.request("PATCH", f"/sessions/{session}", settings)
    assert response.status_code == 200, response.text
    return json_of(response)


# --- settings ---


def test_a_session_has_its_own_model_and_instructions(client: Client) -> None:
    body = {"title": " Sums ", "model": "other", "system_prompt": "Be brief."}
    session = json_of(client.request("POST", "/sessions", body))["id"]
    found = client.session(session)
    assert (found["title"], found["model"], found["system_prompt"]) == ("Sums", "other", "Be brief.")
    assert post(client, session, message="Hi")["model"] == "other"
    assert client.model.requests[-1]["model"] == "other"
    assert asked(client) == [("system", "Be brief."), ("user", "Hi")]


def test_settings_are_changed_and_removed_without_a_change_of_the_list(client: Client) -> None:
    first, second = client.create(), client.create()
    before = client.session(first)
    changed = patch(client, first, model="other", system_prompt="")
    assert (changed["model"], changed["system_prompt"], changed["updated_at"]) == ("other", "", before["updated_at"])
    assert json_of(client.get("/sessions"))["sessions"] == [second, first]
    post(client, first, message="Hi")
    assert asked(client) == [("user", "Hi")]
    assert "model" not in patch(client, first, model=None, system_prompt=None)
    assert {"title", "model", "system_prompt"}.isdisjoint(client.session(first))
    post(client, first, message="Hi")
    assert client.model.requests[-1]["model"] == "gpt-3.5-turbo"


def test_settings_survive_a_restart(store: Callable[[], Storage], tmp_path: Path) -> None:
    storage = store()
    with Client(storage=storage, models=("other",)) as client:
        session = json_of(client.request("POST", "/sessions", {"model": "other", "system_prompt": "é"}))["id"]
        post(client, session, message="Hi")
    with Client(storage=storage, models=("other",)) as client:
        post(client, session, message="Again")
        assert client.model.requests[-1]["model"] == "other"
        assert asked(client)[0] == ("system", "é")


def test_a_model_for_one_turn_alone(client: Client) -> None:
    session = client.create()
    assert post(client, session, message="Hi", model="other")["model"] == "other"
    assert post(client, session, message="Hi")["model"] == "gpt-3.5-turbo"


def test_the_turn_of_a_key_keeps_its_model_when_it_is_replayed(client: Client) -> None:
    session = client.create()
    path, key = f"/sessions/{session}/run", {"Idempotency-Key": "k"}
    first = client.request("POST", path, {"message": "Hi", "model": "other"}, key)
    again = client.request("POST", path, {"message": "Hi"}, key)
    assert json_of(again) == json_of(first)
    assert len(client.model.requests) == 1


@pytest.mark.parametrize("how", ["POST", "PATCH", "run", "run_stream"])
def test_a_model_that_is_not_allowed_is_refused_by_names_of_those_that_are(client: Client, how: str) -> None:
    session = client.create()
    path = {"POST": "/sessions", "PATCH": f"/sessions/{session}"}.get(how, f"/sessions/{session}/{how}")
    method = how if how == "PATCH" else "POST"
    response = client.request(method, path, {"model": "gpt-9", "message": "Hi"})
    assert error_of(response) == (400, "invalid_request")
    assert json_of(response)["error"] == "model must be one of these: gpt-3.5-turbo, other."
    assert client.model.requests == [] and client.messages(session) == []


def test_a_session_whose_model_is_no_longer_allowed_says_so_until_it_has_another(
    store: Callable[[], Storage],
) -> None:
    storage = store()
    with Client(storage=storage, models=("other",)) as client:
        session = json_of(client.request("POST", "/sessions", {"model": "other"}))["id"]
    with Client(storage=storage) as client:
        refused = client.run(session)
        assert error_of(refused) == (400, "invalid_request")
        assert client.messages(session) == [] and not client.session(session)["running"]
        patch(client, session, model=None)
        assert client.run(session).status_code == 200


def test_any_model_may_be_chosen_with_a_star_and_the_model_server_is_asked_for_the_list(tmp_path: Path) -> None:
    with Client(models=("*",)) as client:
        session = json_of(client.request("POST", "/sessions", {"model": "whatever"}))["id"]
        assert post(client, session, message="Hi")["model"] == "whatever"
        client.model.listed = ["llama", "qwen"]
        assert json_of(client.get("/models")) == {
            "models": ["gpt-3.5-turbo", "llama", "qwen"],
            "default": "gpt-3.5-turbo",
        }
        client.model.listed = []
        assert len(json_of(client.get("/models"))["models"]) == 3  # it is asked once a minute


def test_a_model_server_that_lists_nothing_costs_the_list_alone() -> None:
    with Client(models=("*",)) as client:
        assert json_of(client.get("/models"))["models"] == ["gpt-3.5-turbo"]


def test_models_are_listed_by_name(client: Client) -> None:
    assert json_of(client.get("/models")) == {"models": ["gpt-3.5-turbo", "other"], "default": "gpt-3.5-turbo"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": ""},
        {"model": 7},
        {"model": "x" * 201},
        {"system_prompt": "é" * 32769},
        {"system_prompt": []},
        {"title": "x" * 201},
        {"title": {}},
    ],
)
def test_settings_of_another_form_are_refused(client: Client, body: dict[str, Any]) -> None:
    response = client.request("PATCH", f"/sessions/{client.create()}", body)
    assert error_of(response) == (400, "invalid_request")


def test_instructions_may_have_64_kib(client: Client) -> None:
    assert patch(client, client.create(), system_prompt="é" * 32768)["system_prompt"] == "é" * 32768


def test_what_another_model_left_is_not_sent_to_this_one() -> None:
    with ModelServer(default=SERVERS["DeepSeek"]()) as model, Client(model=model, models=("other",)) as client:
        session = client.create()
        post(client, session, message="What is 1+1?")
        post(client, session, message="What is 1+1?", model="other")
        sent = model.requests[-1]["messages"]
        [foreign] = {message.get("reasoning_content") for message in sent[:2] if message.get("tool_calls")}
        assert not foreign


# --- a question in place of another ---


def test_a_question_is_edited(client: Client) -> None:
    session = client.create()
    for text in ("one", "two", "three"):
        post(client, session, message=text)
    target = client.messages(session)[2]["id"]
    answered = post(client, session, message="TWO", replaces=target)
    assert asked(client) == [("user", "one"), ("assistant", "OK"), ("user", "TWO")]
    assert texts(client, session) == ["one", "OK", "TWO", "OK"]
    assert client.messages(session)[-1] == answered
    assert client.messages(session)[2]["replaces"] == target
    [details] = json_of(client.get("/sessions?details=true"))["sessions"]
    assert details["message_count"] == 4


def test_an_answer_is_tried_again(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    client.model.then(answer("Better"))
    post(client, session, replaces=client.messages(session)[0]["id"])
    assert texts(client, session) == ["one", "Better"]
    assert asked(client) == [("user", "one")]


def test_what_was_replaced_stays_readable(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    first = client.messages(session)[0]["id"]
    post(client, session, message="ONE", replaces=first)
    second = client.messages(session)[0]["id"]
    post(client, session, replaces=second)
    found = json_of(client.get(f"/sessions/{session}?replaced=true"))["messages"]
    assert [message["content"] for message in found] == ["one", "OK", "ONE", "OK", "ONE", "OK"]
    third = found[4]["id"]
    assert [message.get("replaced_by") for message in found] == [second, second, third, third, None, None]
    assert [message.get("replaces") for message in found] == [None, None, first, None, second, None]
    page = json_of(client.get(f"/sessions/{session}?replaced=true&limit=2&before={third}"))
    assert [message["content"] for message in page["messages"]] == ["ONE", "OK"]
    assert error_of(client.get(f"/sessions/{session}?before={first}")) == (400, "invalid_request")


def test_replaced_answers_count_in_the_usage(client: Client) -> None:
    session = client.create()
    assert "usage" not in client.session(session)
    post(client, session, message="one")
    post(client, session, replaces=client.messages(session)[0]["id"])
    assert client.session(session)["usage"] == {"total_tokens": 4}


def test_the_title_is_that_of_the_question_in_place(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    post(client, session, message="two", replaces=client.messages(session)[0]["id"])
    [details] = json_of(client.get("/sessions?details=true"))["sessions"]
    assert details["title"] == "two"


@pytest.mark.parametrize("which", ["an answer", "a replaced question", "of another session", "unknown", "a number"])
def test_only_a_question_of_the_conversation_can_be_replaced(client: Client, which: str) -> None:
    session, other = client.create(), client.create()
    post(client, session, message="one")
    post(client, other, message="one")
    question, reply = client.messages(session)
    post(client, session, replaces=question["id"])
    target = {
        "an answer": reply["id"],
        "a replaced question": question["id"],
        "of another session": client.messages(other)[0]["id"],
        "unknown": "msg-0",
        "a number": 7,
    }[which]
    before = client.session(session)
    response = client.request("POST", f"/sessions/{session}/run", {"message": "x", "replaces": target})
    assert error_of(response) == (400, "invalid_request")
    assert client.session(session) == before


def test_a_key_stands_for_the_question_in_place_too(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    first = client.messages(session)[0]["id"]
    path, key = f"/sessions/{session}/run", {"Idempotency-Key": "k"}
    done = client.request("POST", path, {"replaces": first}, key)
    again = client.request("POST", path, {"replaces": first}, key)
    assert (json_of(again), again.headers["Idempotency-Replayed"]) == (json_of(done), "true")
    assert json_of(client.request("POST", path, {"message": "one", "replaces": first}, key)) == json_of(done)
    for other in (
        {"message": "one"},
        {"message": "two", "replaces": first},
        {"replaces": "msg-0"},
        {"continue": True},
    ):
        assert error_of(client.request("POST", path, other, key)) == (422, "idempotency_key_reused")
    assert texts(client, session) == ["one", "OK"]


def test_a_replaced_turn_is_replayed_under_its_key(client: Client) -> None:
    session = client.create()
    first = client.run(session, "one", Idempotency_Key="k")
    post(client, session, message="two", replaces=client.messages(session)[0]["id"])
    assert json_of(client.run(session, "one", Idempotency_Key="k")) == json_of(first)
    assert texts(client, session) == ["two", "OK"]


def test_a_failed_question_in_place_is_tried_again_under_its_key(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    path, body = f"/sessions/{session}/run", {"message": "two", "replaces": client.messages(session)[0]["id"]}
    client.model.then(status(401, {}))
    assert client.request("POST", path, body, {"Idempotency-Key": "k"}).status_code == 502
    assert client.request("POST", path, body, {"Idempotency-Key": "k"}).status_code == 200
    assert texts(client, session) == ["two", "OK"]
    assert asked(client) == [("user", "two")]


def test_a_refused_question_that_was_replaced_does_not_take_a_good_one_with_it(client: Client) -> None:
    session = client.create()
    post(client, session, message="good")
    client.model.then(status(400, {"error": {"message": "not this"}}))
    assert client.run(session, "bad").status_code == 502
    post(client, session, message="better", replaces=client.messages(session)[-1]["id"])
    assert asked(client) == [("user", "good"), ("assistant", "OK"), ("user", "better")]


def test_a_question_is_replaced_while_its_session_is_busy_only_later(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    client.model.then(answer("Hel", STALL))
    stream = client.stream(session, "two")
    stream.next("stream_chunk")
    body = {"replaces": client.messages(session)[0]["id"]}
    assert error_of(client.request("POST", f"/sessions/{session}/run", body)) == (409, "session_busy")
    client.cancel(session)
    stream.close()
    assert client.request("POST", f"/sessions/{session}/run", body).status_code == 200
    assert texts(client, session) == ["one", "OK"]


def test_the_turn_in_place_is_resumed_and_cancelled_like_any(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    go = threading.Event()
    client.model.then(answer("Hel", wait(go), "lo", STALL))
    body = {"replaces": client.messages(session)[0]["id"]}
    run = client.later(client.request, "POST", f"/sessions/{session}/run", body)
    client.model.wait_for(2)
    watcher = client.watch(session)
    assert [watcher.next()["type"], watcher.next()["data"]["content"]] == ["stream_start", "Hel"]
    go.set()
    assert watcher.next()["data"]["content"] == "lo"
    assert client.cancel(session)
    assert json_of(run.result(TIMEOUT))["message"]["status"] == "cancelled"
    assert texts(client, session) == ["one", "Hello"]


def test_two_servers_see_the_same_conversation(store: Callable[[], Storage]) -> None:
    one, two = store(), store()
    if isinstance(one, MemoryStorage):  # which is of one process
        two = one
    with (
        ModelServer(default=answer("OK")) as model,
        Client(model=model, storage=one) as a,
        Client(model=model, storage=two) as b,
    ):
        session = a.create()
        post(a, session, message="one")
        post(b, session, message="two", replaces=b.messages(session)[0]["id"])
        assert texts(a, session) == texts(b, session) == ["two", "OK"]
        watched = a.watch(session)
        assert watched.status == 204 or watched.last()["data"]["message_id"] == a.messages(session)[-1]["id"]


def test_the_file_stays_append_only(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client:
        session = client.create()
        post(client, session, message="one")
        path = tmp_path / f"{session}.json"
        inode, lines = path.stat().st_ino, path.read_bytes().split(b"\n")
        post(client, session, replaces=client.messages(session)[0]["id"])
        assert path.stat().st_ino == inode
        assert path.read_bytes().split(b"\n")[:2] == lines[:2]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.none() | st.integers(0, 12)), max_size=12))
@settings(max_examples=500, deadline=None)
def test_what_is_replaced_is_what_replacing_step_by_step_leaves_out(steps: list[tuple[str, int | None]]) -> None:
    messages: list[dict[str, Any]] = []
    current: list[dict[str, Any]] = []
    for number, (role, target) in enumerate(steps):
        message = {"id": f"msg-{number}", "role": role, "content": "x", "created_at": "t"}
        if target is not None:
            message["replaces"] = f"msg-{target}"
        places = [index for index, other in enumerate(current) if other["id"] == message.get("replaces")]
        current = [*(current[: places[0]] if places and role == "user" else current), message]
        messages.append(message)
    replaced = replaced_messages(messages)
    assert [message for message in messages if message["id"] not in replaced] == current
    assert set(replaced.values()) <= {message["id"] for message in messages if message["role"] == "user"}


def test_after_kill_9_the_conversation_is_the_old_one_or_the_new_one(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    with ModelServer(default=answer("OK")) as model:
        flags = (f"-base_url={model.base_url}", f"-session_dir={tmp_path / 'sessions'}")
        server = serve(*flags)
        session = server.create()
        list(server.say(session, "one").events())
        for number in range(2):
            first = server.messages(session)[0]["id"]
            model.default = answer("Hel", STALL)
            reply = server.request(
                "POST", f"/sessions/{session}/run_stream", {"message": f"new {number}", "replaces": first}
            )
            assert next(reply.events())["type"] == "stream_start"
            server.process.kill()
            server.process.wait(TIMEOUT)
            reply.close()
            model.default = answer("OK")
            server = serve(*flags)
            assert server.messages(session)[0]["content"] == f"new {number}"
            assert len([m for m in server.messages(session) if m["role"] == "user"]) == 1
        list(server.say(session, "and on").events())
        assert [m["content"] for m in server.messages(session) if m["role"] == "user"] == ["new 1", "and on"]


# --- a question with a history of the client's own ---


def whole_message(number: int, role: str, text: str) -> dict[str, Any]:
    return {"id": f"msg-h{number}", "role": role, "content": text, "created_at": "2026-01-31T12:34:56Z"}


def test_a_history_comes_with_its_question_in_one_write(store: Callable[[], Storage]) -> None:
    storage = store()
    history = (whole_message(1, "user", "ONE"), whole_message(2, "assistant", "1"))
    with Client(storage=storage, default=answer("OK")) as client:
        session = client.create()
        post(client, session, message="one")
        post(client, session, message="two")
        target = client.messages(session)[0]["id"]
        question = TurnRequest("three", target, history=history)
        turn, replayed = client.app.extensions["turns"].of("").start(session, question)
        assert isinstance(turn.result(), Ended) and not replayed
        assert asked(client) == [("user", "ONE"), ("assistant", "1"), ("user", "three")]
        assert texts(client, session) == ["ONE", "1", "three", "OK"]
        assert len(texts(client, session, "?replaced=true")) == 8
        assert storage.summary(session).message_count == 4
        assert len(storage.get(session).messages) == 6
        post(client, session, message="four", replaces="msg-h1")
        assert asked(client) == [("user", "four")]
        post(client, session, message="five")
        copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
        assert texts(client, copy, "?replaced=true") == ["four", "OK", "five", "OK"]


def test_a_later_question_replaces_the_end_of_a_history(client: Client) -> None:
    history = tuple(whole_message(n, role, role) for n, role in enumerate(["user", "assistant", "user", "assistant"]))
    session = client.create()
    turn, _ = client.app.extensions["turns"].of("").start(session, TurnRequest("last", history=history))
    turn.result()
    post(client, session, message="new", replaces="msg-h2")
    assert asked(client) == [("user", "user"), ("assistant", "assistant"), ("user", "new")]
    assert texts(client, session) == ["user", "assistant", "new", "OK"]


# --- copies and imports ---


def test_a_copy_goes_its_own_way(client: Client) -> None:
    session = json_of(client.request("POST", "/sessions", {"model": "other", "title": "A", "system_prompt": "x"}))[
        "id"
    ]
    post(client, session, message="one")
    post(client, session, message="two")
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session, "title": "B"}))["id"]
    assert client.messages(copy) == client.messages(session)
    found = client.session(copy)
    assert (found["title"], found["model"], found["system_prompt"]) == ("B", "other", "x")
    post(client, copy, message="three")
    assert texts(client, session) == ["one", "OK", "two", "OK"]
    assert texts(client, copy) == ["one", "OK", "two", "OK", "three", "OK"]


def test_a_copy_ends_with_the_message_that_is_named(client: Client) -> None:
    session = client.create()
    post(client, session, message="one")
    post(client, session, message="two")
    until = client.messages(session)[1]["id"]
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session, "until": until}))["id"]
    assert texts(client, copy) == ["one", "OK"]


def test_a_copy_has_neither_what_was_replaced_nor_the_keys(client: Client) -> None:
    session = client.create()
    client.run(session, "one", Idempotency_Key="k")
    post(client, session, replaces=client.messages(session)[0]["id"])
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
    assert texts(client, copy, "?replaced=true") == ["one", "OK"]
    client.run(copy, "one", Idempotency_Key="k")
    assert texts(client, copy) == ["one", "OK", "one", "OK"]


def test_a_copy_leaves_a_refused_question_out_as_its_original_does(client: Client) -> None:
    session = client.create()
    client.model.then(status(413, {}))
    client.run(session, "too much")
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
    post(client, copy, message="less")
    assert asked(client) == [("user", "less")]


@pytest.mark.parametrize("body", [{"until": "msg-0"}, {"copy_of": "session-0", "messages": []}, {"copy_of": 7}])
def test_a_copy_that_is_not_clear_is_refused(client: Client, body: dict[str, Any]) -> None:
    assert error_of(client.request("POST", "/sessions", body)) == (400, "invalid_request")


def test_a_copy_of_nothing_is_not_found_and_until_must_be_there(client: Client) -> None:
    assert error_of(client.request("POST", "/sessions", {"copy_of": "session-0"})) == (404, "session_not_found")
    body = {"copy_of": client.create(), "until": "msg-0"}
    assert error_of(client.request("POST", "/sessions", body)) == (400, "invalid_request")


CALL = {"id": "c1", "type": "function", "function": {"name": "calculator", "arguments": '{"expression": "1+1"}'}}


def test_what_a_session_gives_is_taken_in_again_as_it_was(client: Client) -> None:
    session = client.create()
    client.model.then(tool_call("calculator", {"expression": "1+1"}, text="Let me see."), answer("2"))
    post(client, session, message="one")
    messages = client.messages(session)
    copy = json_of(client.request("POST", "/sessions", {"messages": messages}))["id"]
    assert client.messages(copy) == messages


def test_what_openai_clients_keep_is_taken_in(client: Client) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "assistant", "content": "It is 2.", "refusal": None},
    ]
    session = json_of(client.request("POST", "/sessions", {"messages": messages}))["id"]
    found = client.session(session)
    assert found["system_prompt"] == "Be brief."
    assert [message["content"] for message in found["messages"]] == ["one two", "", "2", "It is 2."]
    assert len({message["id"] for message in found["messages"]}) == 4
    post(client, session, message="And now?")
    assert asked(client)[0] == ("system", "Be brief.")
    assert_well_formed(client.model.requests[-1])


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
    "an orphaned result": ([{"role": "tool", "tool_call_id": "c9", "content": "2"}], "messages[0]"),
    "a call that is none": ([{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}], "messages[0]"),
    "calls that are no list": ([{"role": "assistant", "content": "", "tool_calls": "x"}], "messages[0]"),
    "a repeated id": ([{"id": "msg-1", "role": "user", "content": "x"}] * 2, "messages[1]"),
}


@pytest.mark.parametrize("messages, named", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_taken_in_is_refused_by_its_index(client: Client, messages: Any, named: str) -> None:
    response = client.request("POST", "/sessions", {"messages": messages})
    assert error_of(response) == (400, "invalid_request")
    assert named in json_of(response)["error"]
    assert json_of(client.get("/sessions"))["sessions"] == []


def test_an_import_is_in_one_write(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client:
        client.request("POST", "/sessions", {"messages": [{"role": "user", "content": "é"}] * 3})
        [path] = tmp_path.glob("session-*.json")
        assert [message["content"] for message in json.loads(path.read_text())["messages"]] == ["é"] * 3


# --- expiry ---


def age(client: Client, storage: Storage, session: str, seconds: float) -> None:
    """As if a session had not changed for so long: what is stored says so."""
    with storage.lock(session) as locked:
        past = time.time() - seconds
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(past))
        path = Path(getattr(storage, "_directory", "/nowhere")) / f"{session}.json"
        if path.exists():
            path.write_text(path.read_text().replace(locked.session.updated_at, stamp))
            os.utime(path, (past, past))
        elif connection := getattr(storage, "_connection", None):
            connection.client.hset(f"session_server:session:{session}", "updated_at", stamp)
            connection.client.zadd("session_server:sessions", {session: -past * 1e6})
        else:
            memory = storage._sessions[session]  # type: ignore[attr-defined]
            memory.order = int(past * 1e9)
            memory.session = type(memory.session)(**{**vars(memory.session), "updated_at": stamp})


def test_what_did_not_change_for_long_is_deleted(store: Callable[[], Storage]) -> None:
    storage = store()
    with Client(storage=storage, default=answer("Hel", STALL)) as client:
        old, read, new, running = (client.create() for _ in range(4))
        for session in (old, read, running):
            age(client, storage, session, 100)
        client.session(read)  # which refreshes nothing
        stream = client.stream(running)
        stream.next("stream_start")
        age_again = Expiry(storage, 50)
        assert age_again.sweep() == 2
        assert set(json_of(client.get("/sessions"))["sessions"]) == {new, running}
        assert age_again.sweep() == 0
        client.cancel(running)
        stream.close()


def test_a_session_that_changes_while_it_is_swept_is_kept(store: Callable[[], Storage]) -> None:
    storage = store()
    with Client(storage=storage) as client:
        session = client.create()
        age(client, storage, session, 100)
        found = list(storage.unchanged_since(time.time() - 50))
        assert found == [session]
        client.run(session)
        assert not Expiry(storage, 50)._delete(session, time.time() - 50)
        assert client.session(session)["id"] == session


def test_more_sessions_than_are_listed_at_once_expire(
    store: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    for room, number in (("redis", "_LISTED_AT_ONCE"), ("files", "_SCANNED_AT_ONCE")):
        monkeypatch.setattr(f"stores.{room}.{number}", 2)
    storage = store()
    with Client(storage=storage) as client:
        for _ in range(3):
            age(client, storage, client.create(), 100)
        assert Expiry(storage, 50).sweep() == 3


def test_a_server_deletes_what_has_expired(serve: Callable[..., Server], tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    server = serve("-demo", f"-session_dir={folder}", "-session_ttl=1s")
    session = server.create()
    wait_until(lambda: server.request("GET", f"/sessions/{session}").status == 404)
    assert list(folder.glob("session-*")) == []
    wait_until(lambda: "1 sessions have expired" in server.log.read_text())


def test_a_file_that_cannot_be_understood_does_not_expire(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path))
    session = storage.create()
    path = tmp_path / f"{session}.json"
    path.write_text("{]")
    os.utime(path, (1, 1))
    assert Expiry(storage, 50).sweep() == 0
    assert path.read_text() == "{]"


# --- what a later version has written ---


def test_fields_that_we_do_not_know_are_kept(tmp_path: Path) -> None:
    with Client(storage=FileStorage(str(tmp_path))) as client:
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
    with Client(storage=FileStorage(str(tmp_path))) as client:
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
