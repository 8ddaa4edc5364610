"""Asks a model server for one answer after the other: adapts to what it takes, tries again, and reads."""

import functools
import json
import logging
import random
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import openai

from session_core.data.message import message_text
from session_core.model.budget import Budget
from session_core.model.capabilities import Capabilities, Negotiation, RequestForm, tool_part
from session_core.model.client import ModelClient
from session_core.model.connection import ModelConnection, http_library
from session_core.model.events import Cancelled, Chunk, Event, ModelError, Reasoning
from session_core.model.failures import Failure, broken_off, classify_failure
from session_core.model.history import OutgoingHistory
from session_core.model.model_list import ModelList
from session_core.model.outgoing_files import RequestBody, forget_files, sent_parts
from session_core.model.reply import Reply
from session_core.model.stream import Body, read_tail, sse_data, whole
from session_core.telemetry.spans import ModelSpan, Observer, Result

log = logging.getLogger(__name__)

_MAX_RETRIES = 2
_MAX_MODELS = 100  # of which is known what they take
_CONNECT_SECONDS = 10.0
_USAGE_SECONDS = 2.0  # how long to wait behind a finish reason for what may follow
_ERRORS = (openai.OpenAIError, http_library.HTTPError, OSError, ValueError, RuntimeError)


class OfferedTool(Protocol):
    """What a model server is told of a tool."""

    @property
    def schema(self) -> dict[str, Any]:
        """Its name, what it does, and its parameters, as the API has them."""


class ChatCompletions:
    """The endpoint of a model server, for any number of runs at once. It remembers what each model takes.

    `options` go with every request. `capabilities(model)` is what is known of a model.
    Raises ValueError where the address or the proxy settings cannot be used.
    """

    def __init__(self, api_key: str, base_url: str, *, stream: bool, options: Mapping[str, Any]) -> None:
        self.api_key = api_key
        self.base_url = base_url
        self.stream = stream
        self.options = dict(options)
        try:
            self.client = ModelClient(api_key, base_url)
        except (ImportError, ValueError, http_library.InvalidURL) as error:
            raise ValueError(f"{base_url} cannot be used as it is set up: {error}") from error
        self.models = ModelList(self.client)
        form = RequestForm() if stream else RequestForm().without({"usage"})
        self.capabilities = functools.lru_cache(_MAX_MODELS)(lambda _model: Capabilities(form))

    @contextmanager
    def connect(
        self, budget: Budget, observer: Observer, options: Mapping[str, Any], callers_tools: Iterable[str] = ()
    ) -> Iterator["Completions"]:
        """A connection for the requests of one run. `options` are merged over those of every request. Of the tools
        with `callers_tools` as names nothing is remembered."""
        with self.client.connection(budget.cancellation) as connection:
            yield Completions(self, connection, budget, observer, options, {*options, *callers_tools})


class Completions:
    """The answers of one run, over a connection of its own."""

    def __init__(
        self,
        server: ChatCompletions,
        connection: ModelConnection,
        budget: Budget,
        observer: Observer,
        options: Mapping[str, Any],
        callers: Collection[str],
    ) -> None:
        self._server = server
        self._connection = connection
        self._budget = budget
        self._observer = observer
        self._options = {**server.options, **options}
        self._callers = callers  # names of the caller's own options and tools
        self._share = 1.0  # of the time that is left, which one request may use

    def ask(self, outgoing: OutgoingHistory, tools: Mapping[str, OfferedTool]) -> Generator[Event, None, Reply]:
        """One answer. Asks again where that may help and nothing of the answer has been seen."""
        negotiation = Negotiation(self._server.capabilities(outgoing.model), self._callers)
        retries = 0
        while True:
            request = self._request(outgoing, tools, negotiation)
            try:
                reply = yield from self._observed_answer(request)
            except Failure as failure:
                if failure.begun:
                    raise
                changed = self._cuts(failure, outgoing) or negotiation.change(failure)
                if changed or self._leaves_out(failure, outgoing, retries):
                    continue
                if not self._can_wait(failure, retries):
                    raise failure.blame(self._callers) from None
                retries += 1
            else:
                negotiation.accept()
                self._options.pop("tool_choice", None)  # else a tool that must be called is called for ever
                return reply

    def _request(
        self, outgoing: OutgoingHistory, tools: Mapping[str, OfferedTool], negotiation: Negotiation
    ) -> dict[str, Any]:
        form = negotiation.form
        request: dict[str, Any] = {"model": outgoing.model, "messages": outgoing.messages(form)}
        offered = [name for name in tools if form.offers(name)]
        if offered:
            request["tools"] = [tools[name].schema for name in offered]
        request["stream"] = self._server.stream
        if form.has("usage"):
            request["stream_options"] = {"include_usage": True}
        parts = {"usage": form.has("usage"), "provider_metadata": outgoing.returned_metadata, "tools": bool(offered)}
        negotiation.sent = [part for part, is_sent in parts.items() if is_sent]
        negotiation.sent += sorted(sent_parts(request["messages"]))
        negotiation.sent += [tool_part(name) for name in offered if name not in self._callers]
        self._share = 0.5 if outgoing.has_unanswered else 1.0
        return {**request, **self._options}

    def _cuts(self, failure: Failure, outgoing: OutgoingHistory) -> bool:
        """Makes a request shorter that may be too long. Where that is not clear, a question may be the cause."""
        is_vague = failure.too_long and not failure.overflows
        return (is_vague and outgoing.leave_out_unanswered()) or (
            failure.too_long and outgoing.trim(keep=failure.overflows)
        )

    def _leaves_out(self, failure: Failure, outgoing: OutgoingHistory, retries: int) -> bool:
        """Leaves out the unanswered questions of earlier turns, where nothing else helps and they may be the cause.

        After a time-out there is no time for the same request again.
        """
        is_last_try = failure.code == "model_timeout" or not failure.may_pass or retries == _MAX_RETRIES
        return failure.reached and is_last_try and outgoing.leave_out_unanswered()

    def _can_wait(self, failure: Failure, retries: int) -> bool:
        """Waits before the next try. Returns False at once where none may help, or there is no time for it."""
        delay = failure.delay if failure.delay is not None else random.uniform(0.4, 0.6) * 2**retries
        if not failure.may_pass or retries == _MAX_RETRIES or delay >= self._budget.remaining():
            return False
        if self._budget.cancellation.wait(delay):
            raise Cancelled
        return True

    def _observed_answer(self, request: dict[str, Any]) -> Generator[Event, None, Reply]:
        span = self._observer.start_span(ModelSpan(request["model"], self._server.base_url))
        result = Result("internal_error", failed=True)
        try:
            reply = yield from self._answer(request, span.headers)
            result = Result("ok", usage=reply.usage, model=reply.model, finish_reason=reply.finish_reason)
            return reply
        except ModelError as error:
            result = Result(error.code, failed=True)
            raise
        except (Cancelled, GeneratorExit):
            result = Result("stopped")
            raise
        finally:
            span.end(result)

    def _answer(self, request: dict[str, Any], headers: Mapping[str, str]) -> Generator[Event, None, Reply]:
        """One request, and its answer as it comes. Raises Failure."""
        reply = Reply(self._budget)
        asked_at = time.monotonic()
        try:
            with self._post(request, headers) as stream:
                yield from self._read(stream.response, reply)
            yield from reply.end()
        except _ERRORS as error:
            if self._budget.cancellation.is_cancelled:
                raise Cancelled from None
            sent = [self._server.api_key, *map(message_text, request["messages"])]
            # The error's text is not for every log.
            raise classify_failure(error, reply.has_begun, sent, self._server.options) from None
        log.debug("Answered after %.3f s: %r", time.monotonic() - asked_at, reply.finish_reason)
        if reply.is_broken_off:
            raise broken_off(reply.finish_reason, reply.has_begun)
        return reply

    def _post(self, request: dict[str, Any], headers: Mapping[str, str]) -> Any:
        left = self._budget.remaining() * self._share
        log.debug("Asking %s with %d messages, %.0f s left", request["model"], len(request["messages"]), left)
        client = self._server.client
        body = RequestBody(request)
        stream: Any = client.over(self._connection).post(
            client.chat_url,
            content=body,
            cast_to=object,
            stream=True,
            stream_cls=openai.Stream[object],
            options={
                "timeout": openai.Timeout(left, connect=min(left, _CONNECT_SECONDS)),
                "headers": {**headers, "Content-Length": str(body.size)},
            },
        )
        body.clear()
        forget_files(request["messages"])
        return stream

    def _read(self, response: Any, reply: Reply) -> Iterator[Reasoning | Chunk]:
        """What the frames of an answer add. A finish reason ends the answer, whatever becomes of the rest."""
        with Body(response) as parts:
            try:
                for data in sse_data(parts, self._budget) if self._server.stream else whole(parts, self._budget):
                    if data.startswith(b"[DONE]"):
                        read_tail(response)
                        break
                    # jiter refuses the halves of a character, which may come in two frames.
                    yield from reply.add(json.loads(data.decode()))
                    if reply.finish_reason:
                        parts.end_within(_USAGE_SECONDS)
            except _ERRORS:
                if reply.finish_reason is None or self._budget.cancellation.is_cancelled:
                    raise
