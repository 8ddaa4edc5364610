"""Summaries of what is old, before a turn: when they are made, of what, and what the model gets from then on."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from session_core.model.demo import ScriptedReply
from session_core.stores.files import FileStorage
from storage import MemoryStorage, Storage
from tests.support.client import Client, error_of, json_of
from tests.support.model_server import ModelServer, ReplyTo, answer, frames, status, tool_call
from tests.support.pictures import image, png, text
from tests.support.sessions import asked, patch, post, texts
from tests.support.summaries import Summarizer, asks, compact, contents, is_beginning, question, talk, tokens
from tests.support.thinking_servers import SERVERS
from tests.support.well_formed import assert_well_formed

LIMIT = 1200  # tokens
DUE = 11  # the first turn before which a summary is made, of five turns

Open = Callable[..., Client]


@pytest.fixture
def model() -> Iterator[Summarizer]:
    with Summarizer() as model:
        yield model


@pytest.fixture
def client(model: Summarizer, store: Callable[[], Storage]) -> Iterator[Client]:
    with Client(model=model, storage=store(), compact_at=LIMIT, system_prompt="Be brief.") as client:
        yield client


@pytest.fixture
def plain(model: Summarizer) -> Iterator[Client]:
    """The same in memory alone."""
    with Client(model=model, compact_at=LIMIT, system_prompt="Be brief.") as client:
        yield client


def summary_of(client: Client, session: str) -> dict[str, Any]:
    found: dict[str, Any] = client.session(session)["compacted"]
    return found


def ids(client: Client, session: str) -> list[str]:
    return [message["id"] for message in client.messages(session)]


# --- when, and what of it goes to the model ---


def test_a_summary_is_made_before_a_turn_when_the_last_request_had_so_many_tokens(
    client: Client, model: Summarizer
) -> None:
    session = client.create()
    talk(client, session, DUE - 1)
    assert model.asked == [] and "compacted" not in client.session(session)
    assert tokens(model.turns[-2]) < LIMIT <= tokens(model.turns[-1])
    talk(client, session, 1, DUE)
    assert len(model.asked) == 1 and model.requests.index(model.asked[0]) == DUE - 1
    found = summary_of(client, session)
    assert found.keys() == {"until", "content", "created_at"} and found["content"] == "summary 1."
    assert found["until"] in ids(client, session)


def test_the_model_gets_the_instructions_with_the_summary_at_their_end_and_the_messages_behind_it(
    client: Client, model: Summarizer
) -> None:
    session = client.create()
    talk(client, session, DUE)
    messages = client.messages(session)
    behind = messages[1 + ids(client, session).index(summary_of(client, session)["until"]) :]
    system, *sent = model.turns[-1]["messages"]
    assert system["role"] == "system"
    assert system["content"].startswith("Be brief.\n\n") and system["content"].endswith("\n\nsummary 1.")
    assert [one["content"] for one in sent] == [one["content"] for one in behind[:-1]]
    assert sent[0]["role"] == "user" and sent[-1]["content"] == question(DUE)


def test_the_newest_turns_that_fit_into_half_the_limit_are_never_summed_up(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    _, *kept = model.turns[-1]["messages"][:-1]
    until = ids(client, session).index(summary_of(client, session)["until"])
    next_turn = [{"role": "user", "content": text} for text in texts(client, session)[until - 1 : until + 1]]
    assert tokens({"messages": kept}) <= LIMIT / 2 < tokens({"messages": next_turn + kept})


def test_the_request_for_it_begins_with_the_bytes_of_the_turn_before(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, 2 * DUE)
    assert len(model.asked) == 3
    for request in model.asked:
        before = model.requests[model.requests.index(request) - 1]
        assert is_beginning(request["messages"][:-2], before["messages"])
        others = [{name: value for name, value in one.items() if name != "messages"} for one in (request, before)]
        assert json.dumps(others[0]) == json.dumps(others[1])
        assert request["tools"]


def test_the_request_for_it_asks_for_the_words_of_the_user(plain: Client, model: Summarizer) -> None:
    talk(plain, plain.create(), DUE)
    asking = model.asked[0]["messages"][-1]
    assert asking["role"] == "user"
    assert "word for word" in asking["content"] and "forbade" in asking["content"]


def test_the_beginning_stays_the_same_until_the_next_summary(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, 40)
    turns = model.turns
    anew = [
        number
        for number, (one, other) in enumerate(itertools.pairwise(turns), 2)
        if not is_beginning(one["messages"], other["messages"])
    ]
    assert len(anew) == len(model.asked) == 6
    for request in model.requests:
        assert_well_formed(request)
        assert tokens(request) < LIMIT * 1.2


def test_a_second_summary_builds_on_the_first(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE + 5)
    first, second = model.asked
    assert second["messages"][0]["content"].endswith("\n\nsummary 1.")
    assert contents(first)[1] == "Question 1"
    assert contents(second)[1] == contents(first)[-3].replace("5", "6")  # the turn behind those of the first
    assert summary_of(client, session)["content"] == "summary 2."
    assert "summary 1." not in json.dumps(model.turns[-1]["messages"])


def test_where_a_summary_and_what_fits_are_near_the_limit_not_every_turn_makes_one(model: Summarizer) -> None:
    with Client(model=model, compact_at=1000, system_prompt="x" * 2000, tools=()) as client:
        talk(client, client.create(), 30)
        assert len(model.asked) <= 30 / 2
        assert all(tokens(request) < 1400 for request in model.requests)


def test_nothing_that_was_stored_is_cut(client: Client) -> None:
    session = client.create()
    talk(client, session, 30)
    assert [text for text in texts(client, session) if text.startswith("Question")] == [
        question(number) for number in range(1, 31)
    ]
    assert len(texts(client, session)) == 60


def test_without_the_flag_none_is_made(model: Summarizer) -> None:
    with Client(model=model) as client:
        talk(client, client.create(), 15)
        assert model.asked == []


def test_a_server_that_tells_no_tokens_gets_no_request_for_one() -> None:
    with Summarizer(tells=False) as model, Client(model=model, compact_at=10) as client:
        talk(client, client.create(), 5)
        assert model.asked == []


def test_the_size_counts_of_the_last_request_and_not_of_all_rounds_of_a_turn(model: Summarizer) -> None:
    with Client(model=model, compact_at=500) as client:
        session = client.create()
        for number in range(3):
            usage = {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301}
            calls = tool_call("calculator", {"expression": "1+1"}, id=f"c{number}", usage=usage)
            model.then(calls, answer("2", usage=usage))
            post(client, session, message="1+1?")
        assert client.messages(session)[-1]["usage"]["prompt_tokens"] == 600
        assert model.asked == []


def test_the_question_is_stored_before_the_summary_is_asked_for(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE - 1)

    def look(request: dict[str, Any]) -> Any:
        found.append(texts(client, session)[-1])
        return answer("summary")(request)

    found: list[str] = []
    model.summaries.append(look)
    talk(client, session, 1, DUE)
    assert found == [question(DUE)]


def test_calls_of_tools_in_the_summary_do_not_run(plain: Client, model: Summarizer) -> None:
    session = plain.create()
    talk(plain, session, DUE - 1)
    model.summaries.append(tool_call("calculator", {"expression": "1+1"}, text="The summary."))
    talk(plain, session, 1, DUE)
    assert summary_of(plain, session)["content"] == "The summary."
    assert [m["role"] for m in plain.messages(session)] == ["user", "assistant"] * DUE


def test_turns_with_tools_are_summed_up_whole(model: Summarizer) -> None:
    with Client(model=model, compact_at=900) as client:
        session = client.create()
        for number in range(1, 20):
            usage = {"prompt_tokens": 60 * number}
            model.then(tool_call("calculator", {"expression": "1+1"}, id=f"c{number}", usage=usage))
            talk(client, session, 1, number)
        assert model.asked
        for request in model.requests:
            assert_well_formed(request)


def test_a_turn_that_is_larger_than_half_the_limit_is_summed_up_too(plain: Client, model: Summarizer) -> None:
    session = plain.create()
    talk(plain, session, 1)
    post(plain, session, message="x" * 6000)
    talk(plain, session, 1, 3)
    assert contents(model.turns[-1])[1:] == ["Question 3"]
    assert summary_of(plain, session)["until"] == ids(plain, session)[3]


def test_where_all_earlier_turns_fit_into_half_the_limit_none_is_made(model: Summarizer) -> None:
    with Client(model=model, compact_at=LIMIT, system_prompt="x" * 6000) as client:
        talk(client, client.create(), 4)
        assert tokens(model.turns[-1]) > LIMIT and model.asked == []


def test_a_summary_of_a_session_with_its_own_model_and_instructions(plain: Client, model: Summarizer) -> None:
    with Client(model=model, models=("other",), compact_at=LIMIT) as client:
        session = client.create()
        patch(client, session, model="other", system_prompt="Rhyme.")
        talk(client, session, DUE)
        assert model.asked[0]["model"] == "other"
        assert asked(client)[0][1].startswith("Rhyme.\n\n")


def test_a_turn_with_a_format_of_its_own_has_a_summary_in_plain_text(model: Summarizer) -> None:
    with Client(model=model, compact_at=LIMIT) as client:
        headers = {"X-Session-Id": "chat"}
        for number in range(1, DUE + 1):
            body = {
                "model": "gpt-3.5-turbo",
                "messages": [{"role": "user", "content": question(number)}],
                "response_format": {"type": "json_object"},
                "max_tokens": 9,
            }
            assert client.request("POST", "/v1/chat/completions", body, headers).status_code == 200
        assert len(model.asked) == 1
        assert {"response_format", "max_tokens"}.isdisjoint(model.asked[0])
        assert {"response_format", "max_tokens"} <= model.turns[-1].keys()


def test_the_reasoning_of_a_summary_is_no_part_of_it(plain: Client, model: Summarizer) -> None:
    session = plain.create()
    talk(plain, session, DUE - 1)
    model.summaries.append(answer("<think>hm</think>", "The summary."))
    talk(plain, session, 1, DUE)
    assert summary_of(plain, session)["content"] == "The summary."


def test_a_stream_shows_nothing_of_the_summary(plain: Client, model: Summarizer) -> None:
    session = plain.create()
    talk(plain, session, DUE - 1)
    events = plain.stream(session, question(DUE)).rest()
    assert len(model.asked) == 1
    assert "summary" not in json.dumps(events)
    assert events[-1]["data"]["complete_text"].startswith("Answer.")


def test_the_tokens_of_a_summary_count_in_the_usage_of_its_turn_and_session(plain: Client, model: Summarizer) -> None:
    session = plain.create()
    talk(plain, session, DUE)
    used = sum(tokens(request) for request in model.requests)
    assert plain.session(session)["usage"]["prompt_tokens"] == used
    last = tokens(model.asked[0]) + tokens(model.turns[-1])
    assert plain.messages(session)[-1]["usage"]["prompt_tokens"] == last


def test_the_tokens_of_a_summary_count_where_the_turn_calls_tools_and_waits(model: Summarizer) -> None:
    with Client(model=model, compact_at=LIMIT) as client:
        session = client.create()
        talk(client, session, DUE - 1)
        model.default = tool_call("mine", {}, usage={"prompt_tokens": 5})
        model.then(answer("summary", usage={"prompt_tokens": 100}))
        body = {"id": session, "message": {"id": "m", "role": "user", "parts": [{"type": "text", "text": "go"}]}}
        tools = {"mine": {"description": "", "parameters": {"type": "object"}}}
        assert client.request("POST", "/ui/chat", {**body, "tools": tools}).status_code == 200
        assert client.messages(session)[-1]["usage"]["prompt_tokens"] == 105


# --- a conversation that is too long for one request ---


def grown(client: Client, turns: int) -> str:
    """A session with so many turns in which nothing was summed up."""
    session = client.create()
    with Client(storage=client.storage, model=client.model, tools=()) as before:
        talk(before, session, turns)
    return session


def test_a_conversation_that_is_too_long_is_summed_up_in_pieces() -> None:
    with Summarizer() as model, Client(model=model, compact_at=700, tools=()) as client:
        session = grown(client, 11)
        model.context = 500
        talk(client, session, 1, 12)
        taken = [request for request in model.asked if tokens(request) <= 500]
        assert len(taken) > 1
        covered = [text for request in taken for text in contents(request) if text.startswith("Question")]
        assert covered == [f"Question {number}" for number in range(1, len(covered) + 1)]
        for number, request in enumerate(taken[1:], 1):
            assert request["messages"][0]["content"].endswith(f"summary {number}.")
        assert summary_of(client, session)["content"] == f"summary {len(taken)}."
        assert contents(model.turns[-1])[1] == f"Question {len(covered) + 1}"


def test_a_turn_that_is_too_long_by_itself_is_summed_up_by_the_ends_of_its_texts() -> None:
    with Summarizer() as model, Client(model=model, compact_at=1000, tools=()) as client:
        session = client.create()
        post(client, session, message=f"Begin {'x' * 20_000} end")
        model.context = 1500
        talk(client, session, 1)
        text = model.asked[-1]["messages"][0]["content"]
        assert text.startswith("Begin x") and text.endswith("x end") and "[…]" in text
        assert summary_of(client, session)["content"] == "summary 1."
        assert contents(model.turns[-1])[1:] == ["Question 1"]


def test_what_max_history_has_cut_is_in_the_summary(model: Summarizer) -> None:
    with Client(model=model, compact_at=700, max_history=8, tools=()) as client:
        session = grown(client, 6)
        model.then(answer("OK", usage={"prompt_tokens": 800}))
        talk(client, session, 2, 7)
        cut, asking, _ = model.requests[-3:]
        assert contents(cut)[0] not in ("Question 1", "Question 2")
        assert contents(asking)[0] == "Question 1"


def test_what_an_overflow_has_cut_is_in_the_summary() -> None:
    with Summarizer(context=1000) as model, Client(model=model, compact_at=600, tools=()) as client:
        session = grown(client, 13)
        assert contents(model.turns[-1])[0] == "Question 7"
        model.context = 0
        talk(client, session, 1, 14)
        assert contents(model.asked[0])[0] == "Question 1"
        assert int(contents(model.turns[-1])[1].split()[1]) >= 7


# --- failures ---

FAILURES: dict[str, ReplyTo] = {
    "an error": status(400, {"error": {"message": "no"}}),
    "nothing": answer(""),
    "white space": answer(" \n"),
    "cut off": answer("The sum", finish_reason="length"),
    "without an end": answer("The sum", finish_reason=None),
    "filtered": answer("The sum", finish_reason="content_filter"),
    "a call alone": tool_call("calculator", {"expression": "1"}),
    "broken off": frames({"choices": [{"index": 0, "delta": {"content": "The sum"}}]}, {"error": {"message": "no"}}),
    "too long": answer("x" * (1 << 17)),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=list(FAILURES))
def test_after_a_summary_that_fails_the_turn_goes_on_without(
    plain: Client, model: Summarizer, failure: ReplyTo, caplog: pytest.LogCaptureFixture
) -> None:
    session = plain.create()
    talk(plain, session, DUE - 1)
    model.summaries.append(failure)
    with caplog.at_level(logging.WARNING):
        talk(plain, session, 1, DUE)
    assert "compacted" not in plain.session(session)
    assert contents(model.turns[-1])[1] == "Question 1" and len(model.turns[-1]["messages"]) == 2 * DUE
    assert any("without a new summary" in record.getMessage() for record in caplog.records)
    talk(plain, session, 1, DUE + 1)
    assert summary_of(plain, session)["content"].startswith("summary")


def test_a_second_summary_that_fails_leaves_the_first(plain: Client, model: Summarizer) -> None:
    session = plain.create()
    talk(plain, session, DUE + 4)
    first = summary_of(plain, session)
    model.summaries.append(answer(""))
    talk(plain, session, 1, DUE + 5)
    assert model.summaries == [] and summary_of(plain, session) == first
    assert model.turns[-1]["messages"][0]["content"].endswith("summary 1.")


def test_a_piece_that_fails_leaves_no_summary_of_the_pieces_before() -> None:
    with Summarizer() as model, Client(model=model, compact_at=700, tools=()) as client:
        session = grown(client, 11)
        model.context = 500
        model.summaries = [answer("The first piece."), answer("")]
        client.run(session, question(12))
        assert model.summaries == [] and "compacted" not in client.session(session)


def test_the_tokens_of_a_summary_that_was_cut_off_count_too(plain: Client, model: Summarizer) -> None:
    session = plain.create()
    talk(plain, session, DUE - 1)
    model.summaries.append(answer("The sum", finish_reason="length", usage={"prompt_tokens": 10**6}))
    talk(plain, session, 1, DUE)
    assert plain.session(session)["usage"]["prompt_tokens"] > 10**6


def test_a_store_that_cannot_take_the_summary_leaves_the_turn_alone(
    model: Summarizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that has room for a message, and none for the file once more."""
    with Client(model=model, storage=FileStorage.open(str(tmp_path)), compact_at=LIMIT) as client:
        session = client.create()
        talk(client, session, DUE - 1)
        real = FileStorage._write_new

        def full(*arguments: Any, **named: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(FileStorage, "_write_new", full)
        talk(client, session, 1, DUE)
        monkeypatch.setattr(FileStorage, "_write_new", real)
        assert "compacted" not in client.session(session)
        assert len(client.messages(session)) == 2 * DUE


# --- versions ---


def test_a_question_in_place_of_one_before_the_end_of_the_summary_drops_it(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    post(client, session, message="Anew.", replaces=ids(client, session)[4])
    assert "compacted" not in client.session(session)
    assert contents(model.turns[-1]) == ["Be brief.", "Question 1", "Answer", "Question 2", "Answer", "Anew."]


def test_a_question_behind_one_before_the_end_of_the_summary_drops_it(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    post(client, session, message="Anew.", after=ids(client, session)[3])
    assert "compacted" not in client.session(session)
    assert contents(model.turns[-1])[0] == "Be brief."


def test_a_question_in_place_of_one_behind_the_summary_keeps_it(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    found = summary_of(client, session)
    first_behind = ids(client, session).index(found["until"]) + 1
    post(client, session, message="Anew.", replaces=ids(client, session)[first_behind])
    assert summary_of(client, session) == found
    assert [text for _, text in asked(client)[1:]] == ["Anew."]


def test_the_summary_is_in_force_again_where_its_version_is(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    found, known = summary_of(client, session), ids(client, session)
    post(client, session, message="Anew.", replaces=known[4])
    post(client, session, message="Back.", after=known[-1])
    assert summary_of(client, session) == found
    assert asked(client)[0][1].endswith("summary 1.") and asked(client)[-1][1] == "Back."


def test_a_client_that_resends_its_transcript_gets_the_summary_in_force(client: Client, model: Summarizer) -> None:
    transcript: list[dict[str, str]] = []
    for number in range(1, DUE + 4):
        transcript.append({"role": "user", "content": question(number)})
        body = {"model": "gpt-3.5-turbo", "messages": transcript}
        response = client.request("POST", "/v1/chat/completions", body, {"X-OpenWebUI-Chat-Id": "chat"})
        transcript.append(json_of(response)["choices"][0]["message"])
        session = response.headers["X-Session-Id"]
    assert len(model.asked) == 1 and len(client.messages(session)) == 2 * DUE + 6
    assert is_beginning(model.turns[-2]["messages"], model.turns[-1]["messages"])
    assert model.turns[-1]["messages"][0]["content"].endswith("summary 1.")


def test_pictures_are_shown_to_the_model_that_sums_them_up(client: Client, model: Summarizer) -> None:
    session = client.create()
    body = {"message": [text("What is this?"), image(png(3, 3000))]}
    assert client.request("POST", f"/sessions/{session}/run", body).status_code == 200
    talk(client, session, DUE)
    assert model.asked[0]["messages"][1] == model.turns[0]["messages"][1]
    assert model.asked[0]["messages"][1]["content"][1]["type"] == "image_url"


def test_after_a_summary_is_dropped_a_new_one_is_made(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    post(client, session, message="Anew.", replaces=ids(client, session)[4])
    talk(client, session, 12, 20)
    assert summary_of(client, session)["content"] == "summary 2."
    assert "Question 3" not in contents(model.asked[-1])
    assert contents(model.asked[-1])[-2] == "Answer" and "Anew." in contents(model.asked[-1])


def test_a_copy_keeps_the_summary(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session}))["id"]
    assert summary_of(client, copy) == summary_of(client, session)
    talk(client, copy, 1, DUE + 1)
    assert model.turns[-1]["messages"][0]["content"].endswith("summary 1.")
    assert is_beginning(model.turns[-2]["messages"], model.turns[-1]["messages"])


def test_a_copy_that_ends_before_the_summary_does_has_none(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    copy = json_of(client.request("POST", "/sessions", {"copy_of": session, "until": ids(client, session)[5]}))["id"]
    assert "compacted" not in client.session(copy)
    talk(client, copy, 1, 4)
    assert contents(model.turns[-1])[:2] == ["Be brief.", "Question 1"]


def test_what_get_gives_is_imported_with_its_summary(client: Client, model: Summarizer) -> None:
    session = client.create()
    talk(client, session, DUE)
    given = client.session(session)
    copy = json_of(client.request("POST", "/sessions", given | {"model": None, "title": None}))["id"]
    assert client.session(copy)["compacted"] == given["compacted"]
    talk(client, copy, 1, DUE + 1)
    assert is_beginning(model.turns[-2]["messages"], model.turns[-1]["messages"])


def test_an_import_gives_the_end_of_its_summary_a_new_id_with_the_message(client: Client, model: Summarizer) -> None:
    messages = [
        {"role": "system", "content": "Rhyme."},
        {"id": "a", "role": "user", "content": "one"},
        {"id": "b", "role": "assistant", "content": "1"},
        {"id": "c", "role": "user", "content": "two"},
        {"id": "d", "role": "assistant", "content": "2"},
    ]
    made = {"until": "b", "content": "They counted to one.", "created_at": "2026-01-31T12:34:56Z"}
    session = json_of(client.request("POST", "/sessions", {"messages": messages, "compacted": made}))["id"]
    assert summary_of(client, session) == {**made, "until": ids(client, session)[1]}
    post(client, session, message="three")
    assert [text for _, text in asked(client)[1:]] == ["two", "2", "three"]
    assert asked(client)[0][1].endswith("They counted to one.")


BAD_SUMMARIES: dict[str, Any] = {
    "no object": "x",
    "no text": {"until": "msg-1", "content": 1, "created_at": "2026-01-31T12:34:56Z"},
    "blank": {"until": "msg-1", "content": " ", "created_at": "2026-01-31T12:34:56Z"},
    "no message": {"until": "msg-2", "content": "x", "created_at": "2026-01-31T12:34:56Z"},
    "too long": {"until": "msg-1", "content": "x" * (1 << 17), "created_at": "2026-01-31T12:34:56Z"},
}


@pytest.mark.parametrize("made", BAD_SUMMARIES.values(), ids=list(BAD_SUMMARIES))
def test_an_import_whose_summary_is_none_is_refused(plain: Client, made: Any) -> None:
    body = {"messages": [{"id": "msg-1", "role": "user", "content": "one"}], "compacted": made}
    assert error_of(plain.request("POST", "/sessions", body)) == (400, "invalid_request")


# --- what is stored ---


def test_a_summary_survives_a_restart(model: Summarizer, store: Callable[[], Storage]) -> None:
    storage = store()
    with Client(model=model, storage=storage, compact_at=LIMIT) as client:
        session = client.create()
        talk(client, session, DUE)
        found = summary_of(client, session)
    storage = storage if isinstance(storage, MemoryStorage) else store()
    with Client(model=model, storage=storage, compact_at=LIMIT) as client:
        assert summary_of(client, session) == found
        talk(client, session, 1, DUE + 1)
        assert is_beginning(model.turns[-2]["messages"], model.turns[-1]["messages"])


def test_a_file_with_a_summary_has_the_promised_form(model: Summarizer, tmp_path: Path) -> None:
    with Client(model=model, storage=FileStorage.open(str(tmp_path)), compact_at=LIMIT) as client:
        session = client.create()
        talk(client, session, DUE)
        lines = (tmp_path / f"{session}.json").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2 + 2 * DUE
        assert json.loads(lines[0] + "]}")["compacted"]["content"] == "summary 1."


@pytest.mark.parametrize("value", [None, "x", {}, {"until": 1, "content": "x", "created_at": "t"}], ids=str)
def test_a_file_whose_summary_is_none_is_read_without(model: Summarizer, tmp_path: Path, value: Any) -> None:
    storage = FileStorage.open(str(tmp_path))
    with Client(model=model, storage=storage, compact_at=LIMIT) as client:
        session = client.create()
        talk(client, session, 2)
        file = tmp_path / f"{session}.json"
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "compacted": value}))
        assert "compacted" not in client.session(session)
        talk(client, session, 1, 3)
        assert len(model.turns[-1]["messages"]) == 5


@pytest.mark.parametrize("name", list(SERVERS))
def test_a_server_that_wants_its_reasoning_back_takes_the_request_and_what_follows(name: str) -> None:
    script = SERVERS[name]()
    refusals = []

    def reply(request: dict[str, Any]) -> ScriptedReply:
        made = script(request)
        refusals.append(made.status)
        return answer("The summary.")(request) if asks(request) and made.status == 200 else made

    with ModelServer(default=reply) as model, Client(model=model) as client:
        session = client.create()
        for number in range(4):
            post(client, session, message=question(number))
        refusals.clear()
        assert compact(client, session)["status"] == "completed"
        post(client, session, message=question(4))
        assert set(refusals) == {200}
        assert asked(client)[0][1].endswith("The summary.")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(1, 4000), st.sampled_from(["compact", "replace", "fail", "forget"])),
        min_size=3,
        max_size=14,
    )
)
def test_whatever_is_summed_up_the_history_is_never_cut(steps: list[int | str]) -> None:
    with Summarizer() as model, Client(model=model, compact_at=800, storage=MemoryStorage()) as client:
        session, stored = client.create(), 0
        for number, step in enumerate(steps):
            if step == "compact":
                client.request("POST", f"/sessions/{session}/compact")
            elif step == "replace" and stored:
                first = next(one for one in client.messages(session) if one["role"] == "user")
                post(client, session, replaces=first["id"])
                stored += 2
            elif step == "fail":
                model.summaries.append(answer(""))
            elif isinstance(step, int):
                post(client, session, message=f"{number} {'word ' * (step // 5)}")
                stored += 2
            shown = json_of(client.get(f"/sessions/{session}?replaced=true"))["messages"]
            assert len(shown) == stored
        for request in model.requests:
            assert_well_formed(request)
