"""The example of `docs/long-conversations.md`: what a model was sent after a hundred turns.

`python -m tests.program.test_long_conversation` writes it anew.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from session_core.model.demo import ScriptedReply
from tests.support.client import Client
from tests.support.model_server import ModelServer, answer
from tests.support.server import ROOT
from tests.support.summaries import asks, tokens

DOCUMENT = ROOT / "docs" / "long-conversations.md"
EXAMPLE = re.compile(r"(?<=<!-- example: begin -->\n).*(?=<!-- example: end -->)", re.DOTALL)
TURNS = 100
FIRST = "Plan a week in Lisbon for us. Never suggest a museum."
PLACES = ("a market", "a garden", "a beach", "a viewpoint", "a tram", "a bakery", "a bookshop")
SHOWN = 9  # messages of the last request


def question(number: int) -> str:
    return FIRST if number == 1 else f"{number}. What about {PLACES[number % 7]} on day {1 + number % 7}?"


def reply(request: dict[str, Any]) -> ScriptedReply:
    questions = [m["content"] for m in request["messages"] if m["role"] == "user"]
    usage = {"prompt_tokens": tokens(request), "completion_tokens": 30}
    if asks(request):
        text = f'The user wrote: "{FIRST}" We went through the days up to question {questions[-2].split(".")[0]}.'
    else:
        text = (
            f"{questions[-1].split('.')[0]}: yes, early in the morning, and it is a short walk from where you stay."
        )
    return answer(text, usage=usage)(request)


def example() -> str:
    """The sizes of all requests, and the last one."""
    with (
        ModelServer(default=reply) as model,
        Client(model=model, compact_at=2000, system_prompt="Be brief.", tools=()) as client,
    ):
        session = client.create()
        for number in range(1, TURNS + 1):
            assert client.run(session, question(number)).status_code == 200
        made = [number for number, request in enumerate(model.requests) if asks(request)]
        assert len(client.messages(session)) == 2 * TURNS
        last, largest = model.requests[-1], max(map(tokens, model.requests))
    head = (
        f"The session has {2 * TURNS} messages. The model was asked {len(made)} times for a summary. No request had\n"
        f"more than {largest:,} tokens, and this one has {tokens(last):,}, in {len(last['messages'])} messages:\n"
    )
    messages = list(map(_shown, last["messages"]))
    left = len(messages) - SHOWN
    shown = [*messages[: SHOWN - 4], f"…          ({left} more)", *messages[-4:]] if left > 0 else messages
    return "\n" + head + "\n```\n" + "\n".join(shown) + "\n```\n\n"


def _shown(message: Mapping[str, Any]) -> str:
    lines = [line for part in message["content"].split("\n") for line in textwrap.wrap(part, 100) or [""]]
    return textwrap.indent("\n".join(lines), " " * 11).replace(" " * 11, f"{message['role']:11}", 1)


def test_the_example_is_what_the_model_was_sent() -> None:
    found = EXAMPLE.search(DOCUMENT.read_text(encoding="utf-8"))
    assert found and found[0] == example(), json.dumps(found and found[0])


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(EXAMPLE.sub(lambda _: example(), text), encoding="utf-8")
