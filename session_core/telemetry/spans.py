"""What may see the work of the server: requests, turns, calls of the model, calls of tools."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")  # a request may have any other text
TOKEN_KINDS = {  # where the usage of a call has them; cached ones are input too, and reasoning is output too
    "input": ("prompt_tokens",),
    "cached": ("prompt_tokens_details", "cached_tokens"),
    "output": ("completion_tokens",),
    "reasoning": ("completion_tokens_details", "reasoning_tokens"),
}


class RequestSpan(NamedTuple):
    """A request of a caller. `route` is its path with names in place of ids, empty where there is no such path.

    `host` is the Host header, and `trace` are the headers that tell of the caller's own trace.
    """

    method: str
    route: str
    path: str = ""
    scheme: str = ""
    host: str = ""
    protocol: str = ""
    client: str = ""
    user_agent: str = ""
    trace: Mapping[str, str] = MappingProxyType({})


class TurnSpan(NamedTuple):
    """A turn that runs in this process. `started_at` is `time.monotonic()`."""

    session_id: str
    model: str
    started_at: float


class ModelSpan(NamedTuple):
    """One request to the model server. Its `address` may hold a secret behind the `?`."""

    model: str
    address: str


class ToolSpan(NamedTuple):
    """One call of a tool. `offered` says whether there is a tool of this name; if not, the model made it up."""

    id: str
    name: str
    offered: bool


class Result(NamedTuple):
    """How a piece of work ended.

    `name` is the status of a request, or the status of a turn or the code of its error. For a call of the model it is
    `ok`, `stopped` (its turn ended first) or the code of an error, for a call of a tool `ok`, `stopped`, `error` or
    `timeout`. `error` is the code of an error that answered a request. The others are what the model server told.
    """

    name: str
    failed: bool = False
    error: str | None = None
    usage: Any = None
    model: str | None = None
    finish_reason: str | None = None


Span = RequestSpan | TurnSpan | ModelSpan | ToolSpan


class Observer:
    """Sees one piece of work, and each piece that begins within it. This one does nothing; others derive from it.

    Every method may be called from any thread, returns at once, and raises nothing.
    """

    headers: Mapping[str, str] = MappingProxyType({})  # for the peer that does the work

    def start_span(self, work: Span) -> "Observer":
        """Work that begins within this. Returns what sees it, until its `end`, which comes once."""
        return self

    def current(self) -> AbstractContextManager[object]:
        """Has what this thread does in the block belong to this work."""
        return nullcontext()

    def first_chunk(self, seconds: float) -> None:
        """The first text of a turn has come, so many seconds after its start."""

    def end(self, outcome: Result) -> None:
        """The work has ended."""


def count_tokens(usage: Any) -> dict[str, float]:
    """The tokens by kind, as far as the model server told them, whatever else it sent."""
    found = {}
    for kind, path in TOKEN_KINDS.items():
        number = usage
        for name in path:
            number = number.get(name) if isinstance(number, dict) else None
        if isinstance(number, int | float) and not isinstance(number, bool) and 0 <= number < 1e15:
            found[kind] = number
    return found
