"""Sessions that an earlier version has stored, in files and in Redis: they are read, and mean the same."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from session_core.stores.files import FileStorage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import status
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.sessions import asked, patch, post

ID = "session-0123456789abcdef"
TIME = "2026-01-31T12:34:56Z"

QUESTION = '{"id":"msg-1","role":"user","content":"one","idempotency_key":"k","created_at":"2026-01-31T12:34:01Z"}'
ANSWER = '{"id":"msg-2","role":"assistant","content":"OK","model":"m","created_at":"2026-01-31T12:34:02Z"}'
CALLING = (
    '{"id":"msg-2","role":"assistant","content":"","tool_calls":[{"id":"call_1","type":"function","function":'
    '{"name":"calculator","arguments":"{}"}}],"model":"m","created_at":"2026-01-31T12:34:02Z"}'
)
FAILED_CALL = (
    '{"id":"msg-3","role":"tool","tool_call_id":"call_1","name":"calculator","content":"error: too large",'
    '"created_at":"2026-01-31T12:34:03Z"}'
)


@dataclass(frozen=True)
class Earlier:
    """The app over a store, and how an earlier version puts a session there: its messages as lines of JSON, what is
    kept though it is not known to that version, and further fields as JSON."""

    client: Client
    put: Callable[..., None]


@pytest.fixture(params=["files", pytest.param("redis", marks=NEEDED)])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Earlier]:
    if request.param == "files":
        with Client(storage=FileStorage.open(str(tmp_path))) as client:
            yield Earlier(client, functools.partial(put_file, tmp_path))
        return
    from session_core.stores.redis import RedisStorage

    server: RedisServer = request.getfixturevalue("redis")
    server.call("FLUSHALL")
    with Client(storage=RedisStorage(server.url)) as client:
        yield Earlier(client, functools.partial(put_in_redis, server))


def put_file(directory: Path, *lines: str, kept: str = "", **fields: str) -> None:
    tail = "".join(f',"{name}":{value}' for name, value in fields.items())
    text = f'{{"id":"{ID}","created_at":"{TIME}"{kept and "," + kept},"messages":['
    text += ",".join("\n" + line for line in lines)
    (directory / f"{ID}.json").write_text(f'{text}\n],"updated_at":"{TIME}"{tail}}}\n', encoding="utf-8")


def put_in_redis(server: RedisServer, *lines: str, kept: str = "", **fields: str) -> None:
    none = dict.fromkeys(("title", "model", "system_prompt", "note", "continuation"), "null")
    known = {name: json.dumps(value) for name, value in json.loads(f"{{{kept}}}").items()}
    for name, value in {"created_at": TIME, "updated_at": TIME, **none, **known, **fields}.items():
        server.call("HSET", f"session_server:session:{ID}", name, value)
    for line in lines:
        server.call("RPUSH", f"session_server:messages:{ID}", line)
    server.call("ZADD", "session_server:sessions", -1, ID)


def test_a_turn_that_failed_last_is_asked_again_under_its_key(earlier: Earlier) -> None:
    earlier.put(QUESTION, note='"model_timeout"')
    assert json_of(earlier.client.run(ID, "one", Idempotency_Key="k"))["message"]["content"] == "OK"
    assert [one["content"] for one in earlier.client.messages(ID)] == ["one", "OK"]
    assert json_of(earlier.client.get("/sessions"))["sessions"] == [ID]


def test_the_error_of_a_turn_before_is_told_again(earlier: Earlier) -> None:
    later = '{"id":"msg-4","role":"user","content":"two","previous_error":"model_timeout","created_at":"t"}'
    earlier.put(QUESTION, later)
    assert error_of(earlier.client.run(ID, "one", Idempotency_Key="k")) == (504, "model_timeout")


@pytest.mark.parametrize("where", ["note", "previous_error"])
def test_a_refused_question_stays_left_out_and_its_code_is_told_again(earlier: Earlier, where: str) -> None:
    refused = '"context_length_exceeded refused"'
    if where == "note":
        earlier.put(QUESTION, note=refused)
    else:
        later = f'{{"id":"msg-4","role":"user","content":"two","previous_error":{refused},"created_at":"t"}}'
        earlier.put(QUESTION, later, ANSWER.replace("msg-2", "msg-5"))
    post(earlier.client, ID, message="three")
    before = [] if where == "note" else [("user", "two"), ("assistant", "OK")]
    assert asked(earlier.client) == [*before, ("user", "three")]
    assert error_of(earlier.client.run(ID, "one", Idempotency_Key="k")) == (400, "context_length_exceeded")


def test_a_tool_has_failed_where_its_text_says_so(earlier: Earlier) -> None:
    earlier.put(QUESTION, CALLING, FAILED_CALL, ANSWER.replace("msg-2", "msg-4"))
    assert [one.get("is_error") for one in earlier.client.messages(ID)] == [None, None, True, None]
    events = earlier.client.stream(ID, "one", Idempotency_Key="k").rest()
    results = [one["data"] for one in events if one["type"] == "stream_tool_result"]
    assert results == [{"id": "call_1", "name": "calculator", "error": "too large"}]


def test_an_attempt_continues_the_one_before(earlier: Earlier) -> None:
    partial = (
        '{"id":"msg-4","role":"assistant","content":"par","status":"incomplete","reason":"model_error",'
        '"attempt":2,"goes_on":true,"idempotency_key":"again","created_at":"2026-01-31T12:34:04Z"}'
    )
    earlier.put(QUESTION, CALLING, FAILED_CALL, partial, continuation='{"attempt":2,"goes_on":true,"recovery":0}')
    assert go_on(earlier.client)["content"] == "OK"
    assert asked(earlier.client) == [("user", "one"), ("assistant", ""), ("tool", "error: too large")]


def test_the_number_and_the_key_of_an_attempt_of_which_nothing_is_stored_count(earlier: Earlier) -> None:
    partial = ANSWER.replace('"model"', '"status":"incomplete","reason":"model_error","model"')
    earlier.put(QUESTION, partial, continuation='{"attempt":2,"goes_on":true,"idempotency_key":"again","recovery":0}')
    assert error_of(earlier.client.run(ID, "two", Idempotency_Key="again")) == (422, "idempotency_key_reused")
    go_on(earlier.client)
    assert earlier.client.storage.get(ID).messages[-1]["attempt"] == 3


def test_a_model_gets_its_reasoning_back(earlier: Earlier) -> None:
    server, name = earlier.client.model.base_url, earlier.client.settings.model
    state = json.dumps({"server": server, "reasoning_field": "reasoning_content"})
    earlier.put(
        QUESTION, ANSWER.replace('"model":"m"', f'"reasoning":"hm","model":"{name}","provider_state":{state}')
    )
    post(earlier.client, ID, message="two")
    assert earlier.client.model.requests[-1]["messages"][1]["reasoning_content"] == "hm"


def test_an_earlier_version_that_has_written_last_is_right(earlier: Earlier) -> None:
    """It keeps what this version has written before, which is true no more."""
    state = '"last_error":"model_error","last_refused":true,"continues":{"attempt":7}'
    earlier.put(QUESTION, ANSWER, kept=state)
    session = earlier.client.storage.get(ID)
    assert (session.last_error, session.last_refused, session.continues) == (None, False, None)
    assert error_of(earlier.client.request("POST", f"/sessions/{ID}/run", {"continue": True})) == (
        409,
        "nothing_to_continue",
    )


def test_what_both_versions_have_written_is_read_as_the_later_one_wrote_it(earlier: Earlier) -> None:
    earlier.put(QUESTION, kept='"last_error":"model_error"', note='"model_timeout refused"')
    session = earlier.client.storage.get(ID)
    assert (session.last_error, session.last_refused) == ("model_timeout", True)
    earlier.client.model.then(status(500, {}), status(500, {}), status(500, {}))
    earlier.client.run(ID, "two")
    session = earlier.client.storage.get(ID)
    assert (session.last_error, session.last_refused) == ("model_error", False)


def test_a_file_is_written_with_the_names_of_this_version(tmp_path: Path) -> None:
    path = tmp_path / f"{ID}.json"
    partial = ANSWER.replace(
        '"model"', '"status":"incomplete","reason":"model_error","attempt":2,"goes_on":true,"model"'
    )
    later = '{"id":"msg-3","role":"user","content":"two","previous_error":"model_error refused","created_at":"t"}'
    answer = ANSWER.replace("msg-2", "msg-4").replace('"model"', '"provider_state":{"server":"s"},"model"')
    put_file(tmp_path, QUESTION, partial, later, answer, note='"x refused"', continuation='{"attempt":2}')
    with Client(storage=FileStorage.open(str(tmp_path))) as client:
        patch(client, ID, title="T")
    value = json.loads(path.read_bytes())
    assert (value["last_error"], value["last_refused"], value["continues"]) == ("x", True, {"attempt": 2})
    assert value.keys().isdisjoint({"note", "continuation"})
    _, first, second, third = value["messages"]
    assert (first["continues"], "goes_on" in first) == (True, False)
    assert (second["previous_error"], second["previous_refused"]) == ("model_error", True)
    assert (third["provider_metadata"], "provider_state" in third) == ({"server": "s"}, False)


def go_on(client: Client) -> dict[str, Any]:
    message: dict[str, Any] = json_of(client.request("POST", f"/sessions/{ID}/run", {"continue": True}))["message"]
    return message
