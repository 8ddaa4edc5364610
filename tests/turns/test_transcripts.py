"""A client's transcript is the truth, whatever versions a session has, and whatever a front end puts around texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_core.data.message import content_text
from session_core.data.versions import BEGINNING, find_parents, find_path, replaced_messages
from session_core.turns.transcripts import (
    ClientIntent,
    ClientMessage,
    agrees_with_answer,
    compare_histories,
    compare_question,
)

Stored = list[dict[str, Any]]
WRAPPED = "### Task:\nAnswer.\n<context>\n<source>Text.</source>\n</context>\n\n{}"


def conversation(*texts: str) -> Stored:
    """Questions and answers in turn. An answer that ends with … did not complete."""
    stored: Stored = []
    for number, text in enumerate(texts):
        role = "assistant" if number % 2 else "user"
        stored.append({"id": f"m{number}", "role": role, "content": text.removesuffix("…")})
        if text.endswith("…"):
            stored[-1]["status"] = "incomplete"
    return stored


def transcript(*texts: str) -> list[ClientMessage]:
    """Answers and questions in turn, so that the last one is a question."""
    return [
        ClientMessage("assistant" if (len(texts) - at) % 2 == 0 else "user", text) for at, text in enumerate(texts)
    ]


FOUR = conversation("q1", "a1", "q2", "a2")


@pytest.mark.parametrize(
    ("stored", "texts", "expected"),
    [
        ([], ["q1"], ClientIntent("append")),
        ([], ["q0", "a0", "q1"], ClientIntent("append")),
        (FOUR, ["q1", "a1", "q2", "a2", "q3"], ClientIntent("append", since=4)),
        (FOUR, [" q1\n", "a 1", "q2", "a2\n\n", "q3"], ClientIntent("append", since=4)),
        (FOUR, ["a1", "q2", "a2", "q3"], ClientIntent("append", since=3)),
        (FOUR, ["a2", "q3"], ClientIntent("append", since=1)),
        (FOUR, ["q1", "a1", "q2"], ClientIntent("retry", "m2", 3)),
        (FOUR, ["q1"], ClientIntent("retry", "m0", 1)),
        (FOUR, ["q1", "a1", "Q2"], ClientIntent("replace", "m1", 2, "m2")),
        (FOUR, ["Q1"], ClientIntent("replace", BEGINNING, 0, "m0")),
        (FOUR, ["q1", "A1", "q2"], ClientIntent("replace", "m0", 1)),
        (FOUR, ["q1", "a1", "q2", "a2 and more", "q3"], ClientIntent("replace", "m2", 3)),
        (FOUR, ["q1", "a", "q3"], ClientIntent("replace", "m0", 1)),
        (conversation("q1", "a1 is…"), ["q1", "a1", "q2"], ClientIntent("append", since=2)),
        (conversation("q1", "a1 is…"), ["q1", "a2", "q2"], ClientIntent("replace", "m0", 1)),
        (conversation("q1", "…"), ["q1", "", "q2"], ClientIntent("append", since=2)),
        (conversation("q1", ""), ["q1", "", "q2"], ClientIntent("append", since=2)),
        (conversation(WRAPPED.format("q1"), "a1"), ["q1", "a1", "q2"], ClientIntent("append", since=2)),
        (conversation("q1", "a1"), [WRAPPED.format("q1"), "a1", "q2"], ClientIntent("replace", BEGINNING, 0, "m0")),
    ],
)
def test_a_transcript_is_compared_from_its_beginning(
    stored: Stored, texts: list[str], expected: ClientIntent
) -> None:
    assert compare_histories(stored, transcript(*texts)) == expected


def test_another_version_that_was_replaced_is_found() -> None:
    again = {"id": "m4", "role": "user", "content": "q2", "replaces": "m2"}
    other = {"id": "m5", "role": "assistant", "content": "other"}
    stored = [*FOUR, again, other]
    assert compare_histories(stored, transcript("q1", "a1", "q2", "other", "q3")) == ClientIntent("append", since=4)
    assert compare_histories(stored, transcript("q1", "a1", "q2", "a2", "q3")) == ClientIntent("replace", "m3", 4)


def test_an_id_tells_which_of_equal_messages_is_meant() -> None:
    stored = [{**one, "client_id": f"c{one['id']}"} for one in conversation(*["q", "a"] * 4)]
    messages = [
        ClientMessage("user", "q", "cm4"),
        ClientMessage("assistant", "a", "cm4"),
        ClientMessage("user", "new"),
    ]
    assert compare_histories(stored, messages) == ClientIntent("replace", "m5", 2, "m6")
    anonymous = [one._replace(id=None) for one in messages]
    assert compare_histories(stored, anonymous) == ClientIntent("replace", "m1", 2, "m2")


def test_an_answer_of_several_messages_is_one() -> None:
    calls = {"id": "m1", "role": "assistant", "content": "Let me see. ", "tool_calls": [{"id": "c"}]}
    result = {"id": "m2", "role": "tool", "content": "2"}
    stored = [*conversation("q1"), calls, result, {"id": "m3", "role": "assistant", "content": "It is 2."}]
    whole = transcript("q1", "Let me see. It is 2.", "q2")
    assert compare_histories(stored, whole) == ClientIntent("append", since=2)
    apart = [whole[0], ClientMessage("assistant", "Let me see."), ClientMessage("assistant", "It is 2."), whole[2]]
    assert compare_histories(stored, apart) == ClientIntent("append", since=3)
    assert compare_histories(stored[:3], transcript("q1", "", "q2")) == ClientIntent("append", since=2)


def test_an_attempt_that_another_one_followed_does_not_count() -> None:
    stored = [*conversation("q1", "par…"), {"id": "m2", "role": "assistant", "content": "whole", "attempt": 2}]
    assert compare_histories(stored, transcript("q1", "whole", "q2")) == ClientIntent("append", since=2)


def test_a_question_that_is_sent_alone_goes_on() -> None:
    assert compare_question(FOUR, "q3") == compare_question(FOUR, "q1") == ClientIntent("append")
    assert compare_question(FOUR, " q2 ") == ClientIntent("retry", "m2", 1)
    assert compare_question([], "q1") == ClientIntent("append")


def test_a_beginning_agrees_with_an_answer_that_did_not_complete_alone() -> None:
    assert agrees_with_answer(conversation("q", "whole…")[1:], "who")
    assert not agrees_with_answer(conversation("q", "whole")[1:], "who")


# --- whatever is stored, and whatever the client has made of it ---

TEXTS = st.sampled_from(["a", "b", "c", "d e", "What is it?"])


@st.composite
def sessions(draw: st.DrawFn) -> Stored:
    """A session with versions: turns behind any message, in place of any question, complete or not."""
    stored: Stored = []
    for number in range(draw(st.integers(0, 6))):
        question: dict[str, Any] = {"id": f"q{number}", "role": "user", "content": draw(TEXTS)}
        if draw(st.booleans()):
            question["content"] = WRAPPED.format(question["content"])
        ends = [
            one["id"] for at, one in enumerate(stored) if stored[at + 1 : at + 2] and stored[at + 1]["role"] == "user"
        ]
        match draw(st.sampled_from(["append", "replaces", "after"])):
            case "replaces" if stored:
                question["replaces"] = draw(st.sampled_from([one["id"] for one in stored if one["role"] == "user"]))
            case "after" if ends:
                question["after"] = draw(st.sampled_from(ends))
        stored.append(question)
        if draw(st.integers(0, 4)):
            stored.append({"id": f"a{number}", "role": "assistant", "content": draw(TEXTS)})
            if not draw(st.integers(0, 2)):
                stored[-1]["status"] = "cancelled"
    return stored


def decorated(draw: st.DrawFn, message: ClientMessage) -> ClientMessage:
    shown: Callable[[str], str] = draw(
        st.sampled_from(
            [
                lambda text: text,
                lambda text: f"\n {text}  ",
                lambda text: (
                    f'<details type="reasoning">\nHm.\n</details>\n{text}' if message.role != "user" else text
                ),
                lambda text: f"<think>Hm. <details>x</details></think>{text}" if message.role != "user" else text,
            ]
        )
    )
    return message._replace(content=shown(content_text(message.content)))


def shown(stored: Stored) -> list[ClientMessage]:
    """What a person sees of these messages."""
    return [ClientMessage(one["role"], one["content"].rpartition("</context>\n\n")[2]) for one in stored]


def compared(messages: list[ClientMessage]) -> list[tuple[str, str]]:
    return [(role, text) for role, text, _ in messages]


@given(st.data(), sessions())
def test_what_reaches_the_model_is_what_the_person_sees(data: st.DataObject, stored: Stored) -> None:
    parents = find_parents(stored)
    path = find_path(parents, data.draw(st.integers(-1, len(stored) - 1)))
    seen = shown([stored[index] for index in path])
    trimmed = data.draw(st.integers(0, max(0, len(seen) - 2)))
    seen = seen[trimmed:]
    if seen and data.draw(st.booleans()):
        edited = data.draw(st.integers(0, len(seen) - 1))
        seen[edited] = seen[edited]._replace(content="edited")
    if not seen or seen[-1].role != "user" or data.draw(st.booleans()):
        seen.append(ClientMessage("user", data.draw(TEXTS)))
    intent = compare_histories(stored, [decorated(data.draw, message) for message in seen])
    match intent.kind:
        case "append":
            kept = find_path(parents, len(stored) - 1)
        case "retry":
            kept = find_path(parents, next(at for at, one in enumerate(stored) if one["id"] == intent.id))
        case "replace":
            kept = find_path(parents, next((at for at, one in enumerate(stored) if one["id"] == intent.id), -1))
    sent = [*shown([stored[index] for index in kept]), *seen[intent.since :]]
    incomplete = [stored[index] for index in kept if "status" in stored[index]]
    assert ends_with(sent, seen, len(incomplete))
    assert intent.since == len(seen) or compared(seen[: intent.since]) != compared(seen)


def ends_with(sent: list[ClientMessage], seen: list[ClientMessage], incomplete: int) -> bool:
    """Whether the one conversation ends with the other, which may lack so many answers that did not complete."""
    if not seen:
        return True
    if not sent:
        return False
    if compared([sent[-1]]) == compared([seen[-1]]) and ends_with(sent[:-1], seen[:-1], incomplete):
        return True
    return sent[-1].role == "assistant" and incomplete > 0 and ends_with(sent[:-1], seen, incomplete - 1)


@given(sessions())
def test_a_transcript_that_agrees_is_stored_once(stored: Stored) -> None:
    current = find_path(find_parents(stored), len(stored) - 1)
    seen = shown([stored[index] for index in current])
    intent = compare_histories(stored, [*seen, ClientMessage("user", "new")])
    assert intent == ClientIntent("append", since=len(seen))


@given(sessions())
def test_each_message_is_in_the_conversation_or_replaced_by_a_later_one(stored: Stored) -> None:
    ids = [one["id"] for one in stored]
    current = [ids[index] for index in find_path(find_parents(stored), len(stored) - 1)]
    replaced = replaced_messages(stored)
    assert set(ids) == {*current, *replaced} and not replaced.keys() & set(current)
    assert all(ids.index(one) < ids.index(by) for one, by in replaced.items())


@pytest.mark.parametrize(
    ("stored", "texts"),
    [
        (conversation(*["q", "a"] * 3000), ["q", "a"] * 3000 + ["new"]),
        (conversation(*["q", "a…"] * 3000), ["q", ""] * 3000 + ["new"]),
        (conversation("q", "<details" * 60_000), ["q", "</details>" * 60_000, "new"]),
        (conversation("q", "a"), ["q", "<think</think" * 200_000, "new"]),
        (conversation("### Task:\n" * 60_000, "a"), ["### Task:\n<context>" * 30_000, "a", "new"]),
        (conversation("q", "a" * 500_000 + "…"), ["q", "a" * 499_999, "new"]),
    ],
)
def test_no_text_takes_long(stored: Stored, texts: list[str]) -> None:
    began_at = time.process_time()
    compare_histories(stored, transcript(*texts))
    assert time.process_time() - began_at < 1.0
