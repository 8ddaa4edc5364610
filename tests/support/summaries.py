"""A model server that counts tokens, and sums up when it is asked for that."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from session_core.model.demo import ScriptedReply
from session_core.model.summarizing import ASK
from tests.support.client import Client, json_of
from tests.support.model_server import ModelServer, ReplyTo, answer, status

TEXT = "A sentence of about the length that people write to a machine which answers them. " * 2
TOO_LONG = {"error": {"message": "too long", "code": "context_length_exceeded"}}


def tokens(request: Mapping[str, Any]) -> int:
    """About as many as a tokenizer would count."""
    return sum(len(json.dumps(part)) for part in (*request["messages"], *request.get("tools", ()))) // 4


def asks(request: Mapping[str, Any]) -> bool:
    """Whether a request asks for a summary."""
    last = request["messages"][-1]
    return last["role"] == "user" and isinstance(last["content"], str) and last["content"].endswith(ASK)


class Summarizer(ModelServer):
    """Answers always the same, but where it is asked for a summary: `summary 1.`, `summary 2.`, …, unless one of
    `replies` is in line for that. A request of more than `context` tokens is refused."""

    def __init__(self, *replies: ReplyTo, context: int = 0, tells: bool = True) -> None:
        super().__init__(default=self._answer)
        self.summaries = list(replies)
        self.context = context
        self._tells = tells
        self._number = 0
        self._counting = threading.Lock()

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The requests for summaries."""
        return [request for request in self.requests if asks(request)]

    @property
    def turns(self) -> list[dict[str, Any]]:
        """All other requests."""
        return [request for request in self.requests if not asks(request)]

    def _answer(self, request: dict[str, Any]) -> ScriptedReply:
        used = tokens(request)
        if self.context and used > self.context:
            return status(400, TOO_LONG)(request)
        usage = {"prompt_tokens": used, "completion_tokens": 10, "total_tokens": used + 10} if self._tells else None
        if not asks(request):
            return answer(f"Answer. {TEXT}", usage=usage)(request)
        with self._counting:
            if self.summaries:
                return self.summaries.pop(0)(request)
            self._number += 1
            return answer(f"summary {self._number}.", usage=usage)(request)


def talk(client: Client, session: str, turns: int, first: int = 1) -> None:
    """So many turns, whose questions are numbered."""
    for number in range(first, first + turns):
        response = client.run(session, question(number))
        assert response.status_code == 200, response.text


def question(number: int) -> str:
    return f"Question {number}. {TEXT}"


def compact(client: Client, session: str) -> dict[str, Any]:
    """The answer to `POST …/compact`."""
    response = client.request("POST", f"/sessions/{session}/compact")
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = json_of(response)
    return answered


def contents(request: Mapping[str, Any]) -> list[str]:
    """The beginnings of a request's messages: of questions up to their numbers, else of their first words."""
    return [message["content"].split(". ")[0] for message in request["messages"]]


def is_beginning(shorter: Sequence[Any], longer: Sequence[Any]) -> bool:
    """Whether the JSON of the first is, byte for byte, that of the other's beginning."""
    return json.dumps(shorter) == json.dumps(longer[: len(shorter)])
