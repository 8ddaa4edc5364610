"""A model that may call tools, as a stream of events.

agent = Agent(api_key="sk-…", model="gpt-4o-mini", tools=[calculator])
for event in agent.run([{"role": "user", "content": "What is 15 * 23?"}], Stop()):
    print(event)
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import openai
import pydantic_core

from session_core.data.text import utf8_text
from session_core.model.budget import Budget
from session_core.model.capabilities import Capabilities, Negotiation, Part, RequestForm
from session_core.model.client import ModelClient
from session_core.model.connection import ModelConnection, Stop, http_library
from session_core.model.events import Chunk, Event, ModelError, Reasoning, Stopped
from session_core.model.failures import Failure, classify_failure
from session_core.model.finish_reasons import classify_finish_reason
from session_core.model.history import Conversation
from session_core.model.provider_metadata import ModelId
from session_core.model.reply import Reply
from session_core.model.stream import Body, frames, read_tail, whole
from session_core.telemetry.spans import ModelSpan, Observer, Result
from session_core.tools.functions import AnyTool, CallId, Tool
from session_core.tools.rounds import Rounds

__all__ = ["Agent", "CallId", "Stop", "Tool"]

log = logging.getLogger(__name__)

_MAX_RETRIES = 2
_MAX_TRAITS = 100  # models of which is known what they take
_CONNECT_SECONDS = 10.0
_LIST_SECONDS, _LISTED_SECONDS = 5.0, 60.0  # to wait for a list of models; for which it is kept
_USAGE_SECONDS = 2.0  # how long to wait behind a finish reason for what may follow

FORBIDDEN_OPTIONS = ("model", "messages", "stream", "stream_options", "tools", "n")


class Agent:
    """A model and its tools. One agent serves any number of runs at once, and keeps nothing between them but what it
    learns of the model server.

    `base_url` is OpenAI's own if None; a query in it goes with every request. `stream=False` asks for whole answers.
    `max_history` is how many of the newest messages before the current turn go to the model, cut between turns (0:
    all). `timeout` is in seconds, for a whole run. `options` are merged into every request, such as `temperature`.

    A tool is a function, plain or `async`. The model gets its name, its docstring and a schema from its annotations,
    and the arguments of a call are checked against them. The function's result goes to the model as text, as JSON if
    it is no string. So does the text of a ValueError. Of other exceptions only the type goes to the model. Calls of
    one answer run at the same time. One that takes longer than `tool_timeout` seconds is abandoned.

    `tool_sources` give further tools, and are asked at the start of each run. A tool whose name is taken is left out.

    Raises ValueError if a tool, an option, the address or the proxy settings cannot be used.
    """

    def __init__(
        self,
        *,
        api_key: str,
        base_url: str | None = None,
        model: str,
        stream: bool = True,
        system_prompt: str = "",
        tools: Sequence[Callable[..., Any] | Tool] = (),
        tool_sources: Sequence[Callable[[], Sequence[AnyTool]]] = (),
        tool_timeout: float = 60.0,
        max_history: int = 0,
        timeout: float = 120.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._api_key = api_key
        self._base_url = base_url or "https://api.openai.com/v1"
        self._stream = stream
        self._system_prompt = utf8_text(system_prompt)
        self._own_tools: dict[str, AnyTool] = {}
        self._tool_sources = tuple(tool_sources)
        for tool in (one if isinstance(one, Tool) else Tool(one) for one in tools):
            if other := self._own_tools.get(tool.name):
                where = f"one from {other.source}, one from {tool.source}"
                raise ValueError(f"two tools have the same name, {tool.name}: {where}; rename one")
            self._own_tools[tool.name] = tool
        self._tool_timeout = tool_timeout
        self._options = dict(options or {})
        if forbidden := [name for name in FORBIDDEN_OPTIONS if name in self._options]:
            raise ValueError(f"the option {forbidden[0]} is set by the agent itself")
        self._max_history = max_history
        self._timeout = timeout
        self._traits: dict[str, Capabilities] = {}  # by model
        try:
            self._client = ModelClient(api_key, self._base_url)
        except (ImportError, ValueError, http_library.InvalidURL) as error:
            raise ValueError(f"it cannot be used as it is set up: {error}") from error
        self._listed: tuple[float, list[str]] = (-_LISTED_SECONDS, [])  # when, and the models of the server
        self._lock = threading.Lock()

    @property
    def tools(self) -> list[AnyTool]:
        """What the model may call now."""
        return list(self._tools().values())

    def run(
        self,
        history: Sequence[Mapping[str, Any]],
        stop: Stop,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        options: Mapping[str, Any] | None = None,
        observer: Observer | None = None,
    ) -> Generator[Event, None, None]:
        """Answers the last user message of `history`, calling tools as the model asks.

        `model` and `system_prompt` stand in place of the agent's own. `options` are merged over the agent's. The
        `observer` sees the calls of the model and of tools.

        `history` is the stored messages, oldest first. Whatever state they are in, the request is well formed. An
        assistant message with tool calls comes first as a `Message`, then all its `ToolCall`s, then for each call the
        tool's `Message` and its `ToolResult`. The last event is the `Answer`.

        Raises ModelError, and Stopped after `stop.set()`. A model server that falls silent just before the time is up
        can take up to twice the timeout; `stop.set()` ends that at once.
        """
        origin = ModelId.of(self._base_url, model or self.model)
        instructions = self._system_prompt if system_prompt is None else system_prompt
        conversation = Conversation(history, self._max_history, origin, instructions)
        tools = self._tools()
        settled = {"tools": [tool.schema for tool in tools.values()], **self._options, **(options or {})}
        observer = observer or Observer()
        run = Rounds(tools, self._tool_timeout, conversation, Budget(stop, self._timeout), origin, observer)
        with self._client.connection(stop) as connection:
            answer = yield from run.answer(lambda: self._ask(connection, conversation, settled, run.budget, observer))
        yield answer

    def list_models(self) -> list[str]:
        """The names of the models that the model server lists, as they were a minute ago at most. None where it
        lists none."""
        with self._lock:
            listed_at, names = self._listed
        if time.monotonic() < listed_at + _LISTED_SECONDS:
            return names
        names = []
        stop = Stop()
        try:
            with self._client.connection(stop) as connection:
                listed = self._client.over(connection).models.list(timeout=_LIST_SECONDS)
                names = [utf8_text(model.id) for model in listed.data]
        except (openai.OpenAIError, http_library.HTTPError, OSError, ValueError, AttributeError, TypeError) as error:
            log.warning("Model server: cannot list its models: %s", type(error).__name__)
        with self._lock:
            self._listed = time.monotonic(), names
        return names

    def close(self) -> None:
        """Closes the idle connections now, and those of runs when the runs end."""
        self._client.close()

    def _tools(self) -> dict[str, AnyTool]:
        tools = dict(self._own_tools)
        for source in self._tool_sources:
            for tool in source():
                tools.setdefault(tool.name, tool)
        return tools

    def _ask(
        self,
        connection: ModelConnection,
        conversation: Conversation,
        settled: dict[str, Any],
        budget: Budget,
        observer: Observer,
    ) -> Generator[Event, None, Reply]:
        """One answer. Asks again where that may help and nothing of the answer has been seen."""
        retries = 0
        traits = self._traits_of(conversation.model)
        adaptation = Negotiation(traits)
        while True:
            request, parts = self._request(conversation, settled, adaptation.shape)
            try:
                reply = yield from self._observed_answer(connection, request, budget, observer)
                traits.learn(adaptation.shape, parts)
                return reply
            except Failure as failure:
                if failure.begun:
                    raise
                if (failure.too_long and conversation.trim()) or adaptation.change(failure, parts):
                    continue
                delay = failure.delay if failure.delay is not None else random.uniform(0.4, 0.6) * 2**retries
                if not failure.may_pass or retries == _MAX_RETRIES or delay >= budget.remaining():
                    raise
            retries += 1
            if budget.stop.wait(delay):
                raise Stopped

    def _request(
        self, conversation: Conversation, settled: dict[str, Any], shape: RequestForm
    ) -> tuple[dict[str, Any], set[Part]]:
        """A request of this shape, and the parts in it that a server may refuse. `settled` are tools and options."""
        parts: set[Part] = set()
        messages = conversation.messages(shape)
        request: dict[str, Any] = {"model": conversation.model, "messages": messages}
        if conversation.returned_metadata:
            parts.add("provider_state")
        if settled["tools"] and shape.tools:
            request["tools"] = settled["tools"]
            parts.add("tools")
        request["stream"] = self._stream
        if shape.usage:
            request["stream_options"] = {"include_usage": True}
            parts.add("usage")
        return request | {name: value for name, value in settled.items() if name != "tools"}, parts

    def _observed_answer(
        self, connection: ModelConnection, request: dict[str, Any], budget: Budget, observer: Observer
    ) -> Generator[Event, None, Reply]:
        call = observer.start_span(ModelSpan(request["model"], self._base_url))
        outcome = Result("internal_error", failed=True)
        try:
            reply = yield from self._answer(connection, request, budget, dict(call.headers))
            outcome = Result("ok", usage=reply.usage, model=reply.model, finish_reason=reply.finish_reason)
            return reply
        except ModelError as error:
            outcome = Result(error.code, failed=True)
            raise
        except (Stopped, GeneratorExit):
            outcome = Result("stopped")
            raise
        finally:
            call.end(outcome)

    def _answer(
        self, connection: ModelConnection, request: dict[str, Any], budget: Budget, headers: dict[str, str]
    ) -> Generator[Event, None, Reply]:
        """One request, and its answer as it comes. Raises Failure."""
        reply = Reply(budget)
        left = budget.remaining()
        begun = False
        asked_at = time.monotonic()
        log.debug("Asking %s with %d messages, %.0f s left", request["model"], len(request["messages"]), left)
        try:
            with self._client.over(connection).post(
                self._client.chat_url,
                content=pydantic_core.to_json(request),  # four times as fast as the SDK's own encoder
                cast_to=object,
                stream=True,
                stream_cls=openai.Stream[object],
                options={"timeout": openai.Timeout(left, connect=min(left, _CONNECT_SECONDS)), "headers": headers},
            ) as stream:
                for events in self._read(stream.response, reply, budget):
                    begun = begun or bool(events)
                    yield from events
            for event in reply.end():
                begun = True
                yield event
        except (openai.OpenAIError, http_library.HTTPError, OSError, ValueError, RuntimeError) as error:
            if budget.stop.is_set():
                raise Stopped from None
            sent = [self._api_key, *(message["content"] for message in request["messages"])]
            failed = classify_failure(error, begun or reply.has_calls, sent, self._options)
            raise failed from None  # the error's text is not for every log
        log.debug("Answered after %.3f s: %r", time.monotonic() - asked_at, reply.finish_reason)
        if classify_finish_reason(reply.finish_reason) == "failed":
            log.warning("Model server: the answer broke off with the finish reason %r", reply.finish_reason)
            failure = Failure("model_error", "The model server broke the answer off.")
            failure.begun, failure.may_pass = begun, True
            raise failure
        return reply

    def _read(self, response: Any, reply: Reply, budget: Budget) -> Iterator[list[Reasoning | Chunk]]:
        """What each frame of an answer adds. A finish reason ends the answer, whatever becomes of the rest."""
        with Body(response) as parts:
            try:
                for data in frames(parts, budget) if self._stream else whole(parts, budget):
                    if data.startswith(b"[DONE]"):
                        read_tail(response)
                        break
                    # jiter refuses the halves of a character, which may come in two frames.
                    if events := reply.add(json.loads(data.decode())):
                        yield events
                    if reply.finish_reason:
                        parts.end_within(_USAGE_SECONDS)
            except (http_library.HTTPError, openai.OpenAIError, OSError, ValueError, RuntimeError):
                if reply.finish_reason is None or budget.stop.is_set():
                    raise

    def _traits_of(self, model: str) -> Capabilities:
        with self._lock:
            if model not in self._traits and len(self._traits) >= _MAX_TRAITS:
                del self._traits[next(iter(self._traits))]
            return self._traits.setdefault(model, Capabilities(RequestForm(usage=self._stream)))
