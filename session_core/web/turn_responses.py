"""What all dialects share: a turn that is started, joined or watched, and the response that tells of it."""

from __future__ import annotations

import contextlib
import json
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from flask import Blueprint, Response, g, request

from session_core.turns.event_log import Ended, Failed, LoggedEvent
from session_core.turns.turn import Overloaded, Turn
from session_core.turns.turn_request import TurnRequest
from session_core.turns.turns import Turns
from session_core.web.errors import error_response
from session_core.web.settings import Settings
from session_core.web.users import TurnsByUser
from storage import StorageUnavailable

_BLOCK_BYTES = 1 << 16  # of events in one write, which is also what a client that stops reading holds up
_LOOK_SECONDS = 1.0  # between two looks whether a silent client has left

# Gives text; to_json gives bytes, and takes twice as long.
encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def sse_data(text: str) -> bytes:
    """A JSON text as one frame of a stream. What some clients take for the end of a line is escaped."""
    if not text.isascii():
        text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
    return f"data: {text}\n\n".encode()


class Renderer(Protocol):
    """Makes the frames of a dialect from the events of one turn."""

    comment: bytes  # while the turn is silent
    broken_off: bytes  # where the turn can be followed no more

    def render(self, entry: LoggedEvent) -> bytes:
        """The frames of the next event."""


@dataclass(frozen=True)
class TurnReader:
    """A request that reads a turn, until `close`. `headers` tell of the turn."""

    turn: Turn
    headers: Mapping[str, str]
    close: Callable[[], None]


class TurnResponses:
    """Responses that tell of turns.

    Each turn that is asked for takes one of `settings.max_responses` places, and each stream of a turn that other
    clients have started one of `settings.max_watchers`, so that plain requests always find a free thread.

    `one_shot` are the turns of requests that store nothing.
    """

    def __init__(self, turns_by_user: TurnsByUser, one_shot: Turns, settings: Settings) -> None:
        self.one_shot = one_shot
        self._turns_by_user = turns_by_user
        self._keep_alive = settings.keep_alive
        self._responses = threading.BoundedSemaphore(settings.max_responses)
        self._watchers = threading.BoundedSemaphore(settings.max_watchers)
        self._lock = threading.Lock()
        self._readers: dict[Turn, int] = {}
        self._stoppable: weakref.WeakSet[Turn] = weakref.WeakSet()  # that end when nobody reads them any more
        self._kept: weakref.WeakSet[Turn] = weakref.WeakSet()  # that run on all the same

    @property
    def turns(self) -> Turns:
        """The turns of the user who asks."""
        return self._turns_by_user.of(g.get("user", ""))

    @property
    def reader_count(self) -> int:
        """How many requests read turns now."""
        with self._lock:
            return sum(self._readers.values())

    def start(
        self, session_id: str, question: TurnRequest, *, keeps_running: bool = True, turns: Turns | None = None
    ) -> TurnReader:
        """Reads the turn that a request asks for. Raises what `Turns.start` raises.

        Unless it `keeps_running`, or a request asks for it that wants it to, the turn is cancelled when nobody reads
        it any more.
        """
        turns = turns or self.turns
        turns.models.check(question.model)
        slot = self._responses.acquire(blocking=False)
        with contextlib.ExitStack() as stack:
            if slot:
                stack.callback(self._responses.release)
            turn, replayed = turns.start(session_id, question, slot=slot, observer=g.observed)
            if not slot:
                raise Overloaded
            headers = {"Idempotency-Replayed": "true"} if replayed else {}
            return self._read(turn, headers, stack.pop_all(), keeps_running=keeps_running)

    def join(self, turn: Turn) -> TurnReader:
        """Reads a turn that another request asked for, on behalf of a client that asks for the same."""
        if not self._responses.acquire(blocking=False):
            raise Overloaded
        with contextlib.ExitStack() as stack:
            stack.callback(self._responses.release)
            return self._read(turn, {}, stack.pop_all(), keeps_running=False)

    def watch(self, turn: Turn | None, index: Callable[[], int], renderer: Callable[[Turn], Renderer]) -> Response:
        """A stream of the events behind the first `index()` ones. 204 where none comes."""
        with contextlib.ExitStack() as stack:
            slot = self._watchers.acquire(blocking=False)
            if slot:
                stack.callback(self._watchers.release)
            elif turn is not None and not turn.ended:
                raise Overloaded  # before `index`, which may wait for an event of another process
            after = index()
            if turn is None or (turn.ended and after == turn.length):
                return Response(status=204)
            if not slot:
                raise Overloaded
            stack.callback(turn.watch())
            self._count(turn, 1)
            stack.callback(self._leave, turn)
            return self.stream(TurnReader(turn, {}, stack.pop_all().close), renderer(turn), after)

    def stream(self, reader: TurnReader, renderer: Renderer, after: int = 0) -> Response:
        """The turn's events behind the first `after` ones, as they come, until the last."""
        blocks = event_blocks(reader.turn, after, renderer, self._keep_alive, self._client_left(reader.turn))
        response = Response(blocks, content_type="text/event-stream; charset=utf-8", headers=reader.headers)
        response.headers["Cache-Control"] = "no-cache, no-transform"
        response.headers["X-Accel-Buffering"] = "no"
        response.call_on_close(reader.close)
        return response

    def whole(self, reader: TurnReader, render: Callable[[Turn, Ended], Response]) -> Response:
        """The turn's answer as `render` gives it, when the turn has ended, or the error that ended it."""
        turn, left = reader.turn, self._client_left(reader.turn)
        try:
            while left is not None and not turn.wait(_LOOK_SECONDS) and not left():
                pass
            if left is not None and left():
                return Response(status=204)  # which nobody reads
            last = turn.result()
        finally:
            reader.close()
        if isinstance(last, Failed):
            retry_after = {} if last.retry_after is None else {"Retry-After": last.retry_after}
            return error_response(last.code, last.text, {**reader.headers, **retry_after})
        response = render(turn, last)
        response.headers.update(reader.headers)
        return response

    def _read(
        self, turn: Turn, headers: Mapping[str, str], stack: contextlib.ExitStack, *, keeps_running: bool
    ) -> TurnReader:
        (self._kept if keeps_running else self._stoppable).add(turn)
        self._count(turn, 1)
        stack.callback(self._leave, turn)
        return TurnReader(turn, headers, stack.close)

    def _client_left(self, turn: Turn) -> Callable[[], bool] | None:
        """A function that tells whether the client of this request has left, where that is of interest and the WSGI
        server tells it."""
        left: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
        return left if self._is_stoppable(turn) else None

    def _count(self, turn: Turn, change: int) -> int:
        with self._lock:
            count = self._readers.get(turn, 0) + change
            self._readers[turn] = count
            if not count:
                del self._readers[turn]
            return count

    def _leave(self, turn: Turn) -> None:
        if not self._count(turn, -1) and not turn.ended and self._is_stoppable(turn):
            _cancel_in_background(turn)

    def _is_stoppable(self, turn: Turn) -> bool:
        return turn in self._stoppable and turn not in self._kept


def event_blocks(
    turn: Turn, after: int, renderer: Renderer, keep_alive: float, client_left: Callable[[], bool] | None = None
) -> Iterator[bytes]:
    """The turn's events behind the first `after` ones as frames, as they come, until the last.

    A comment comes after `keep_alive` seconds of silence. The stream ends where the client has left.
    """
    seconds = keep_alive if client_left is None else min(keep_alive, _LOOK_SECONDS)
    silent_seconds = 0.0
    while True:
        try:
            entries = turn.read(after, seconds)
        except StorageUnavailable:  # the turn runs elsewhere; the stream breaks off, and a client can resume it
            yield renderer.broken_off
            return
        if not entries:
            if client_left is not None and client_left():
                return
            silent_seconds += seconds
            if silent_seconds >= keep_alive:
                yield renderer.comment
                silent_seconds = 0.0
            continue
        yield from _blocks(entries, renderer)
        silent_seconds = 0.0
        after += len(entries)
        if isinstance(entries[-1].event, Ended | Failed):
            return


def add_stream(blueprint: Blueprint, rule: str, view: Callable[..., Response]) -> None:
    """Adds a route that streams. It takes no HEAD, since some WSGI servers send a stream's body to that too."""
    blueprint.get(rule)(view)

    def forget_head(state: Any) -> None:
        for found in state.app.url_map.iter_rules(f"{blueprint.name}.{view.__name__}"):
            found.methods.discard("HEAD")

    blueprint.record(forget_head)


def _blocks(entries: list[LoggedEvent], renderer: Renderer) -> Iterator[bytes]:
    block = b""
    for entry in entries:
        block += renderer.render(entry)
        if len(block) >= _BLOCK_BYTES or entry is entries[-1]:
            yield block
            block = b""


def _cancel_in_background(turn: Turn) -> None:
    def cancel() -> None:
        with contextlib.suppress(StorageUnavailable):
            turn.cancel()

    try:
        threading.Thread(target=cancel, name=f"cancel of {turn.id}", daemon=True).start()
    except RuntimeError:  # the system gives no more threads
        cancel()
