"""A model that may call tools, as a stream of events.

agent = Agent(api_key="sk-…", model="gpt-4o-mini", tools=[calculator])
for event in agent.run([{"role": "user", "content": "What is 15 * 23?"}], Cancellation()):
    print(event)
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from session_core.data.message import (
    AnswerFields,
    MessageFields,
    StoredMessage,
    assistant_message,
    tool_call,
    tool_message,
    with_files,
)
from session_core.data.strict_json import to_json
from session_core.data.text import utf8_text
from session_core.model.budget import Budget
from session_core.model.cancellation import Cancellation
from session_core.model.chat_completions import ChatCompletions
from session_core.model.events import Answer, Event, Message, ModelError, ToolCall, ToolResult, Waiting
from session_core.model.history import OutgoingHistory
from session_core.model.outgoing_files import Files, FilesOfRun
from session_core.model.provider_metadata import ModelId
from session_core.model.reply import sum_usage
from session_core.model.summarizing import SummedUp, add_summary, count_old, sum_up
from session_core.telemetry.spans import Observer
from session_core.tools.calls import run_calls
from session_core.tools.client_tools import ClientTools, find_pending, runnable_tools
from session_core.tools.functions import AnyTool, CallId, Tool, tool
from session_core.tools.pictures import Picture, keep_pictures

__all__ = ["Agent", "CallId", "Cancellation", "Picture", "Tool", "tool"]

FORBIDDEN_OPTIONS = ("model", "messages", "stream", "stream_options", "tools", "n")

_MAX_ROUNDS = 10  # of tool calls
_MAX_ORDERED = 10_000  # names of tools whose order is kept


class Agent:
    """A model and its tools. One agent serves any number of runs at once, and keeps nothing between them but what it
    learns of the model server.
    """

    def run(
        self,
        history: Sequence[MessageFields],
        cancellation: Cancellation,
        *,
        model: str | None = None,
        system_prompt: str | None = None,
        summary: str = "",
        usage: dict[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        answered: Sequence[ToolCall | ToolResult] = (),
        results_only: bool = False,
        client_tools: ClientTools | None = None,
        steer: Callable[[], Iterable[MessageFields]] = tuple,
        files: Files | None = None,
        observer: Observer | None = None,
    ) -> Generator[Event, None, None]:
        """Answers the last user message of `history`, calling tools as the model asks.

        `model` and `system_prompt` stand in place of the agent's own. `summary` is one of what came before `history`.
        `usage` is what the turn has used of tokens by now. `options` are merged over the agent's. The `observer` sees
        the calls of the model and of tools. `client_tools` are offered too, and run elsewhere. `answered` are the
        last calls of the history that have waited: those that run now, and the results of others. With `results_only`
        the run ends when all are there. `files` are the pictures and files that messages name, and keep those of
        tools. `steer` gives the messages of the user that have come since, each time before the model is asked with
        results: they go out behind those.

        `history` is the stored messages, oldest first. Whatever state they are in, the request is well formed. An
        assistant message with tool calls comes first as a `Message`, then all its `ToolCall`s, then for each call the
        tool's `Message` and its `ToolResult`. The last event is the `Answer`, or `Waiting` where calls need approval
        or are the client's, and all others have run.

        Raises ModelError, and Cancelled after `cancellation.cancel()`. A model server that falls silent just before
        the time is up can take up to twice the timeout; a cancel ends that at once.
        """
        instructions = add_summary(self._instructions(system_prompt), summary)
        model_id = ModelId.at(self._base_url, model or self.model)
        files = files or FilesOfRun()
        outgoing = OutgoingHistory(history, self._max_history, model_id, instructions, files)
        own, budget, observer = self._tools(), Budget(cancellation, self._timeout), observer or Observer()
        client_tools = client_tools or ClientTools()
        tools = client_tools.beside(own)
        run_tools = functools.partial(
            run_calls,
            budget=budget,
            timeout=self._tool_timeout,
            observer=observer,
            keep=functools.partial(keep_pictures, files, self._max_file_bytes),
        )
        with self._completions.connect(budget, observer, options or {}, client_tools.tools) as completions:
            yield from _tell(outgoing, _settle(answered, functools.partial(run_tools, own)), usage)
            if results_only:
                return
            for finished_rounds in itertools.count():
                outgoing.steer(steer)
                reply = yield from completions.ask(outgoing, tools)
                usage = sum_usage(usage, reply.usage)
                calls = reply.calls(outgoing.unique_id)
                fields = outgoing.fields_of(reply)
                if not calls:
                    break
                if finished_rounds == _MAX_ROUNDS:
                    raise ModelError("too_many_tool_rounds", f"The model wanted tools more than {_MAX_ROUNDS} times.")
                pending = find_pending(tools, calls)
                fields |= _waiting_fields(pending, usage, reply.finish_reason)
                made = [tool_call(call.id, call.name, call.arguments) for call in calls]
                yield Message(outgoing.add(assistant_message(reply.text, made, **fields)), usage)
                yield from (replace(call, waits_for=pending.get(call.id)) for call in calls)
                running = [call for call in calls if call.id not in pending]
                yield from _tell(outgoing, run_tools(runnable_tools(tools), running), usage)
                if pending:
                    yield Waiting(reply.finish_reason)
                    return
        yield Answer(reply.text, reply.finish_reason, reply.incomplete_reason, usage, fields)

    def sum_up(
        self,
        history: Sequence[StoredMessage],
        cancellation: Cancellation,
        *,
        if_due: bool,
        model: str | None = None,
        system_prompt: str | None = None,
        summary: str = "",
        client_tools: ClientTools | None = None,
        files: Files | None = None,
        observer: Observer | None = None,
    ) -> Generator[Event | SummedUp, None, None]:
        """Sums up what is old in `history`, and the `summary` of what came before, in one or more requests that begin
        as those of `run` do. The last `SummedUp` is of all that is old. There is none where nothing is.

        With `if_due` a summary is made where the last request had `compact_at` tokens or more, and takes at most half
        the time of a run, since one follows. Raises what `run` does.
        """
        if if_due and not self._compact_at:
            return
        instructions, own_tools = self._instructions(system_prompt), self._tools()
        client_tools = client_tools or ClientTools()
        tools = client_tools.beside(own_tools)
        beside = len(instructions) + len(summary) + len(to_json([tool.schema for tool in tools.values()]))
        old = history[: count_old(history, self._compact_at if if_due else None, beside, again=bool(summary))]
        if not old:
            return
        budget = Budget(cancellation, self._timeout / 2 if if_due else self._timeout)
        with self._completions.connect(budget, observer or Observer(), {}, client_tools.tools) as completions:
            model_id = ModelId.at(self._base_url, model or self.model)
            yield from sum_up(completions, tools, old, model_id, instructions, summary, files)

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
        compact_at: int = 0,
        max_file_bytes: int = 10 << 20,
        timeout: float = 120.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`base_url` is OpenAI's own if None; a query in it goes with every request. `stream=False` asks for whole
        answers. `max_history` is how many of the newest messages before the current turn go to the model, cut
        between turns (0: all). `compact_at` is how many tokens a request must have before a summary is due (0: none
        ever is). `timeout` is in seconds, for a whole run. `options` are merged into every request, such as
        `temperature`.

        A tool is a function, plain or `async`. The model gets its name, its docstring and a schema from its
        annotations, and the arguments of a call are checked against them. The function's result goes to the model
        as text, as JSON if it is no string. So does the text of a ValueError. Of other exceptions only the type
        goes to the model. Calls of one answer run at the same time. One that takes longer than `tool_timeout`
        seconds is abandoned.

        `tool_sources` give further tools, and are asked at the start of each run. A tool whose name is taken is
        left out.

        Raises ValueError if a tool, an option, the address or the proxy settings cannot be used.
        """
        self.model = model
        self._base_url = base_url or "https://api.openai.com/v1"
        self._system_prompt = utf8_text(system_prompt)
        self._own_tools: dict[str, AnyTool] = {}
        self._tool_sources = tuple(tool_sources)
        self._order: dict[str, None] = {}  # of the names of tools: one that comes later stands behind the others
        for added in (one if isinstance(one, Tool) else Tool(one) for one in tools):
            if other := self._own_tools.get(added.name):
                where = f"one from {other.source}, one from {added.source}"
                raise ValueError(f"two tools have the same name, {added.name}: {where}; rename one")
            self._own_tools[added.name] = added
        self._tool_timeout = tool_timeout
        if forbidden := [name for name in FORBIDDEN_OPTIONS if name in (options or {})]:
            raise ValueError(f"the option {forbidden[0]} is set by the agent itself")
        self._max_history = max_history
        self._compact_at = compact_at
        self._max_file_bytes = max_file_bytes
        self._timeout = timeout
        self._completions = ChatCompletions(api_key, self._base_url, stream=stream, options=options or {})

    @property
    def tools(self) -> list[AnyTool]:
        """What the model may call now."""
        return list(self._tools().values())

    @property
    def server(self) -> str:
        """The model server, as the messages that it wrote name it."""
        return ModelId.at(self._base_url, "").server

    def list_models(self) -> list[str]:
        """The names of the models that the model server lists, as they were a minute ago at most. None where it
        lists none."""
        return self._completions.models.names()

    def close(self) -> None:
        """Closes the idle connections now, and those of runs when the runs end."""
        self._completions.client.close()

    def _instructions(self, own: str | None) -> str:
        return self._system_prompt if own is None else utf8_text(own)

    def _tools(self) -> dict[str, AnyTool]:
        tools = dict(self._own_tools)
        for source in self._tool_sources:
            for offered in source():
                tools.setdefault(offered.name, offered)
        if len(self._order) > _MAX_ORDERED:
            self._order = {}
        self._order |= dict.fromkeys(tools)
        return {name: tools[name] for name in list(self._order) if name in tools}


def _waiting_fields(pending: dict[str, str], usage: dict[str, Any] | None, finish_reason: str | None) -> AnswerFields:
    """What is stored with a message whose calls wait, since it may be the last of the run."""
    return {"pending": pending, "usage": usage or {}, "finish_reason": finish_reason or ""} if pending else {}


def _settle(
    answered: Sequence[ToolCall | ToolResult], run: Callable[[Sequence[ToolCall]], Generator[ToolResult, None, None]]
) -> Iterator[ToolResult]:
    """The results that are there, and in their places those of the calls, which run at the same time."""
    with contextlib.closing(run([one for one in answered if isinstance(one, ToolCall)])) as results:
        for one in answered:
            yield next(results) if isinstance(one, ToolCall) else one


def _tell(
    outgoing: OutgoingHistory, results: Iterable[ToolResult], usage: dict[str, Any] | None
) -> Iterator[Message | ToolResult]:
    """For each result the tool's message, which goes into the history, and then the result itself."""
    for result in results:
        told = tool_message(
            result.id, result.name, with_files(result.content, result.files), result.error is not None
        )
        yield Message(outgoing.add(told), usage)
        yield result
