"""`GET /sessions?q=`: the sessions that hold all the words of a query."""

from __future__ import annotations

import json
import os
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from session_core.data.words import MAX_QUERY_LENGTH
from session_core.stores.files import FileStorage
from session_core.turns import search
from storage import Storage
from tests.support.client import Client, error_of, json_of, storages
from tests.support.model_server import answer, frames, tool_call, wait
from tests.support.redis_server import NEEDED, RedisServer
from tests.support.server import TIMEOUT


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture(scope="module", params=["memory", "files", pytest.param("redis", marks=NEEDED)])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The app over each back end in turn."""
    if request.param == "redis":
        from session_core.stores.redis import RedisStorage

        storage: Storage = RedisStorage(request.getfixturevalue("redis").url)
    else:
        storage = storages(tmp_path_factory.mktemp("kept"))[request.param]()
    with Client(storage=storage) as client:
        yield client


@pytest.fixture
def anywhere(kept: Client) -> Iterator[Client]:
    """The same without sessions."""
    yield kept
    delete_all(kept)


def delete_all(client: Client) -> None:
    for session_id in json_of(client.get("/sessions"))["sessions"]:
        client.request("DELETE", f"/sessions/{session_id}")


def talk(client: Client, *texts: str, **settings: Any) -> str:
    """A session with these texts, the first of them a question."""
    messages = [{"role": "assistant" if number % 2 else "user", "content": text} for number, text in enumerate(texts)]
    made = json_of(client.request("POST", "/sessions", {"messages": messages, **settings}))
    session_id: str = made["id"]
    return session_id


def found(client: Client, query: str, more: str = "") -> list[dict[str, Any]]:
    page = json_of(client.get(f"/sessions?q={quote(query)}{more}"))
    assert page["next"] is None
    sessions: list[dict[str, Any]] = page["sessions"]
    return sessions


def ids(client: Client, query: str) -> list[str]:
    return [one["id"] for one in found(client, query)]


# --- what matches ---


MATCHES = [
    ("Where is the station?", "station"),
    ("Where is the station?", "WHERE the"),
    ("Where is the station?", "tat"),
    ("Where is the station?", "station? where"),
    ("Where is\nthe  station?", '"is the station"'),
    ("Where is\u00a0the\u2028station?", '"is the station"'),
    ('He said "no" twice', 'no"'),
    ('He said "no" twice', '"said " no" "twice'),
    ('a 5" pipe', '5" pipe'),
    ("C:\\new\\table", "c:\\new\\t"),
    ("a/b", "a/B"),
    ("tab\tbed", "bed"),
    ("bell\u0007rings", "bell\u0007r"),
    ("Straße", "STRASSE"),
    ("STRASSE", "straße"),
    ("İstanbul", "istanbul"),
    ("istanbul", "İSTANBUL"),
    ("ΟΔΟΣ ὀδός", "οδος"),
    ("the ﬁnal ﬀ", "final"),
    ("caf\u00e9", "cafe\u0301"),
    ("cafe\u0301", "CAF\u00c9"),
    ("the ca\u00fc\u0323 x", "cau\u0323\u0308"),
    ("日本語の文章", "本語"),
    ("한국어", unicodedata.normalize("NFD", "국어")),
    ("🎉 party", "🎉"),
    ("line\n\u0301odd", "\u0301odd"),
    ("literal \\u00e9 here", "\\u00e9"),
    ("\u0390\u03b3", "\u03b9\u0308\u0301\u03b3"),
]


@pytest.mark.parametrize("text,query", MATCHES)
def test_a_text_has_the_words(anywhere: Client, text: str, query: str) -> None:
    talk(anywhere, "Something else")
    session_id = talk(anywhere, text)
    assert ids(anywhere, query) == [session_id]
    assert ids(anywhere, query + " zebra") == []


@pytest.mark.parametrize(
    "text,query",
    [
        ("Where is the station?", '"the is"'),
        ("Where is the station?", "stations"),
        ("thestation", '"the station"'),
        ("caf\u00e9", "cafe"),
        ("cafe\u0301", "cafe"),
        ("a new line\nhere", "\\nhere"),
    ],
)
def test_a_text_has_not_the_words(anywhere: Client, text: str, query: str) -> None:
    talk(anywhere, text)
    assert ids(anywhere, query) == []


def test_the_words_may_stand_in_different_places_of_a_session(anywhere: Client) -> None:
    session_id = talk(anywhere, "one", "two", "three", title="four")
    talk(anywhere, "one", "two", title="four")
    assert ids(anywhere, "four ONE three") == [session_id]


def test_nothing_but_titles_and_texts_counts(anywhere: Client) -> None:
    session_id = talk(anywhere, "Hi", "Hello", system_prompt="Be brief.")
    message_id = anywhere.messages(session_id)[0]["id"]
    for query in ("user", "content", "role", "brief", session_id, message_id, "20"):
        assert ids(anywhere, query) == [], query


def test_a_replaced_message_does_not_count(anywhere: Client) -> None:
    with Client(storage=anywhere.storage, default=answer("OK")) as client:
        session_id = client.create()
        client.run(session_id, "apple")
        first = client.messages(session_id)[0]["id"]
        assert ids(client, "apple") == [session_id]
        client.request("POST", f"/sessions/{session_id}/run", {"message": "pear", "replaces": first})
        assert (ids(client, "apple"), ids(client, "pear")) == ([], [session_id])


def test_calls_of_tools_and_their_results_count(anywhere: Client) -> None:
    with Client(
        tool_call("calculator", {"expression": "15 * 23"}), answer("Done"), storage=anywhere.storage
    ) as client:
        session_id = client.create()
        client.run(session_id, "Compute")
        for query in ("calculator", '"15 * 23"', "345", "done compute"):
            assert ids(client, query) == [session_id], query


@pytest.mark.parametrize("shown", [True, False])
def test_reasoning_counts_where_callers_see_it(anywhere: Client, shown: bool) -> None:
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "A secret thought"}}]}
    said = {"choices": [{"index": 0, "delta": {"content": "Yes"}, "finish_reason": "stop"}]}
    with Client(frames(thought, said), storage=anywhere.storage, show_reasoning=shown) as client:
        session_id = client.create()
        client.run(session_id)
        assert ids(client, "secret") == ([session_id] if shown else [])
        assert ids(client, "yes") == [session_id]


def test_what_a_running_turn_has_stored_counts(anywhere: Client) -> None:
    go = threading.Event()
    with Client(answer("Hel", wait(go), "lo"), storage=anywhere.storage) as client:
        session_id = client.create()
        stream = client.stream(session_id, "question")
        stream.next("stream_chunk")
        (row,) = found(client, "question", "&details=true")
        assert (row["id"], row["running"]) == (session_id, True)
        go.set()
        stream.rest()
        assert ids(client, "hello question") == [session_id]


def test_a_renamed_and_a_deleted_session(anywhere: Client) -> None:
    session_id = talk(anywhere, "Hi")
    anywhere.request("PATCH", f"/sessions/{session_id}", {"title": "Holidays é"})
    assert ids(anywhere, "holidays É") == [session_id]
    anywhere.request("PATCH", f"/sessions/{session_id}", {"title": None})
    assert ids(anywhere, "holidays") == []
    anywhere.request("DELETE", f"/sessions/{session_id}")
    assert ids(anywhere, "Hi") == []


# --- what is told of a match ---


def test_the_newest_place_is_told(anywhere: Client) -> None:
    session_id = talk(anywhere, "An apple", "A pear", "An apple again", "A plum", title="apple")
    messages = anywhere.messages(session_id)
    assert found(anywhere, "APPLE") == [
        {"id": session_id, "message_id": messages[2]["id"], "snippet": "An apple again"}
    ]
    (row,) = found(anywhere, "pear an")
    assert row["message_id"] == messages[2]["id"]


def test_the_place_is_the_one_with_the_most_words(anywhere: Client) -> None:
    session_id = talk(anywhere, "the budget of May", "the rest", "the end")
    (row,) = found(anywhere, "the budget")
    assert row["message_id"] == anywhere.messages(session_id)[0]["id"]


def test_where_only_the_title_has_the_words_there_is_no_message(anywhere: Client) -> None:
    session_id = talk(anywhere, "Hi", title="Plans for May")
    assert found(anywhere, "plans") == [{"id": session_id, "message_id": None, "snippet": "Plans for May"}]


def test_details_and_the_place_come_together(anywhere: Client) -> None:
    session_id = talk(anywhere, "Hi", "Hello")
    (listed,) = json_of(anywhere.get("/sessions?details=true"))["sessions"]
    message_id = anywhere.messages(session_id)[1]["id"]
    assert found(anywhere, "hello", "&details=true") == [{**listed, "message_id": message_id, "snippet": "Hello"}]


# --- pages ---


def test_sessions_are_found_newest_first(anywhere: Client) -> None:
    with Client(storage=anywhere.storage, default=answer("OK")) as client:
        made = [talk(client, f"apple {number}") for number in range(4)]
        client.run(made[1], "pear")
        assert ids(client, "apple") == [made[1], made[3], made[2], made[0]]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_have_every_match_once_and_in_order(anywhere: Client, limit: int) -> None:
    made = [talk(anywhere, f"{'apple' if number % 3 else 'pear'} {number}") for number in range(10)]
    shown: list[str] = []
    page: dict[str, Any] = {"next": ""}
    while page["next"] is not None:
        after = f"&after={page['next']}" if page["next"] else ""
        page = json_of(anywhere.get(f"/sessions?q=apple&limit={limit}{after}"))
        assert len(page["sessions"]) <= limit
        shown += [one["id"] for one in page["sessions"]]
    assert shown == [id for number, id in enumerate(made) if number % 3][::-1]


def test_a_hundred_are_found_where_no_limit_is(anywhere: Client) -> None:
    made = [talk(anywhere, "apple") for _ in range(101)][::-1]
    page = json_of(anywhere.get("/sessions?q=apple"))
    assert [one["id"] for one in page["sessions"]] == made[:100]
    assert page["next"] == made[99]


def test_a_page_ends_when_its_time_is_up_also_without_a_match(
    anywhere: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    oldest = talk(anywhere, "apple")
    others = [talk(anywhere, "pear") for _ in range(3)][::-1]
    monkeypatch.setattr(search, "_SEARCH_SECONDS", 0.0)
    after = ""
    for session_id in others:
        page = json_of(anywhere.get(f"/sessions?q=apple{after}"))
        assert page == {"sessions": [], "next": session_id}
        after = f"&after={session_id}"
    page = json_of(anywhere.get(f"/sessions?q=apple{after}"))
    assert ([one["id"] for one in page["sessions"]], page["next"]) == ([oldest], None)


def test_an_after_that_was_deleted_meanwhile_is_refused(anywhere: Client) -> None:
    made = [talk(anywhere, "apple") for _ in range(3)]
    page = json_of(anywhere.get("/sessions?q=apple&limit=1"))
    assert page["next"] == made[2]
    anywhere.request("DELETE", f"/sessions/{made[2]}")
    assert error_of(anywhere.get(f"/sessions?q=apple&after={made[2]}")) == (400, "invalid_request")


def test_nothing_is_missed_while_turns_write(anywhere: Client) -> None:
    with Client(storage=anywhere.storage, default=answer("OK")) as client:
        made = {talk(client, "apple") for _ in range(20)}
        talk(client, "pear")
        over = threading.Event()

        def write() -> None:
            while not over.is_set():
                for session_id in made:
                    client.run(session_id, "more")

        busy = client.later(write)
        try:
            for _ in range(20):
                assert sorted(ids(client, "apple")) == sorted(made)
        finally:
            over.set()
        busy.result(TIMEOUT)


# --- bad input ---


@pytest.mark.parametrize(
    "query", ["", " ", "\t\n", '"', '""', '" "', '"""""', "\u00a0", "x" * (MAX_QUERY_LENGTH + 1), "word " * 1000]
)
def test_a_query_without_words_or_of_too_many_is_refused(client: Client, query: str) -> None:
    for details in ("", "&details=true"):
        assert error_of(client.get(f"/sessions?q={quote(query)}{details}")) == (400, "invalid_request")


@pytest.mark.parametrize(
    "query", ['"an open phrase', 'a" b', "%", "%00", "\\", "\ufffd", "a " * (MAX_QUERY_LENGTH // 2)]
)
def test_an_odd_query_is_answered(client: Client, query: str) -> None:
    assert json_of(client.get(f"/sessions?q={quote(query)}"))["sessions"] == []


def test_a_query_that_is_no_utf_8_is_answered(client: Client) -> None:
    assert client.get("/sessions?q=%ff%fe").status_code == 200


# --- files of other hands ---


def write_session(directory: Path, text: str) -> None:
    (directory / "session-1.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_file_with_escapes_is_found_by_its_texts(tmp_path: Path, indent: int | None) -> None:
    storage = FileStorage.open(str(tmp_path))
    message = {"id": "msg-1", "role": "user", "content": "Café a/b 🎉", "created_at": "t"}
    text = json.dumps({"id": "session-1", "created_at": "t", "messages": [message]}, indent=indent)
    write_session(tmp_path, text.replace("/", "\\/"))
    with Client(storage=storage) as client:
        for query in ("CAFÉ", "a/b", "🎉"):
            assert ids(client, query) == ["session-1"], query
        assert ids(client, "u00e9") == []


def test_a_torn_file_is_found_by_its_whole_lines(tmp_path: Path) -> None:
    storage = FileStorage.open(str(tmp_path))
    with Client(storage=storage) as client:
        session_id = talk(client, "apple", "pear")
        file = tmp_path / f"{session_id}.json"
        data = file.read_bytes()
        file.write_bytes(data[: data.index(b"pear") + 4])
        assert (ids(client, "apple"), ids(client, "pear")) == ([session_id], [])


def test_one_file_that_cannot_be_read_costs_itself_alone(tmp_path: Path) -> None:
    storage = FileStorage.open(str(tmp_path))
    with Client(storage=storage) as client:
        made = [talk(client, "apple") for _ in range(5)]
        (tmp_path / f"{made[0]}.json").write_text("{apple")
        (tmp_path / f"{made[1]}.json").unlink()
        (tmp_path / f"{made[1]}.json").symlink_to(tmp_path / f"{made[2]}.json")
        (tmp_path / f"{made[3]}.json").unlink()
        os.mkfifo(tmp_path / f"{made[3]}.json")
        assert ids(client, "apple") == [made[4], made[2]]


def test_a_store_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    storage = FileStorage.open(str(tmp_path / "sessions"))
    with Client(storage=storage) as client:
        talk(client, "apple")
        shutil.rmtree(tmp_path / "sessions")
        assert error_of(client.get("/sessions?q=apple")) == (503, "storage_unavailable")


def test_a_large_session_is_searched_whole(anywhere: Client) -> None:
    session_id = talk(anywhere, "Hi", *["x" * 500_000] * 1, "the needle at its end")
    assert ids(anywhere, "needle") == [session_id]


# --- what a naive reader finds ---


def naive_fold(text: str) -> str:
    composed = unicodedata.normalize("NFC", " ".join(text.split()))
    return unicodedata.normalize("NFC", composed.casefold().replace("i\u0307", "i"))


def shown_texts(client: Client, session_id: str) -> Iterator[str]:
    session = client.session(session_id)
    yield session.get("title", "")
    for message in session["messages"]:
        yield message["content"]
        yield message.get("reasoning", "")
        yield message.get("name", "")
        for call in message.get("tool_calls", ()):
            yield call["function"]["name"]
            yield call["function"]["arguments"]


ODD = 'aAbBiIsS"\\/nut\n\t\x00 éÉe\u0301\u0323\u0307ßİıſKσςΣΐﬁ한\u1112\u1161\u11ab🎉\u00a0\u2028'
TEXT = st.text(st.sampled_from(ODD) | st.characters(codec="utf-8"), max_size=8)
MESSAGE = st.fixed_dictionaries({"content": TEXT}, optional={"reasoning": TEXT, "name": TEXT, "arguments": TEXT})


def stored(number: int, texts: dict[str, str]) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": f"msg-{number}",
        "role": "assistant" if number % 2 else "user",
        "created_at": "t",
    }
    message |= {"content": texts["content"], "reasoning": texts.get("reasoning", "")}
    if number % 3 == 2:
        message |= {"role": "tool", "tool_call_id": "c", "name": texts.get("name", "")}
    if "arguments" in texts:
        function = {"name": texts.get("name", "f"), "arguments": texts["arguments"]}
        message["tool_calls"] = [{"id": "c", "type": "function", "function": function}]
    return message


SESSIONS = st.lists(st.tuples(st.none() | TEXT, st.lists(MESSAGE, max_size=3)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(sessions=SESSIONS, data=st.data())
def test_what_is_found_is_what_a_naive_reader_finds(
    kept: Client, sessions: list[tuple[str | None, list[dict[str, str]]]], data: st.DataObject
) -> None:
    made = {}
    delete_all(kept)
    for title, messages in sessions:
        said = [stored(number, texts) for number, texts in enumerate(messages)]
        session_id = kept.storage.create(said, title=title)  # type: ignore[arg-type]
        made[session_id] = [naive_fold(text) for text in shown_texts(kept, session_id)]
    texts = [text.replace('"', "") for all_texts in made.values() for text in all_texts]
    part = st.sampled_from(texts).flatmap(lambda text: st.slices(len(text)).map(lambda cut: text[cut]))
    words = data.draw(st.lists(part | TEXT.map(lambda text: text.replace('"', "")), min_size=1, max_size=3))
    response = kept.get("/sessions?q=" + quote(" ".join(f'"{word}"' for word in words)))
    wanted = [folded for word in words if (folded := naive_fold(word))]
    if not wanted:
        assert error_of(response) == (400, "invalid_request")
        return
    rows = json_of(response)["sessions"]
    expected = [id for id, all_texts in made.items() if all(any(one in text for text in all_texts) for one in wanted)]
    assert [row["id"] for row in rows] == expected[::-1]
    assert all(any(one in naive_fold(row["snippet"]) for one in wanted) for row in rows)
