"""What all dialects share: a turn that is started, joined or watched, and the response that tells of it."""

import contextlib
import dataclasses
import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from flask import Blueprint, Response, g, request

from session_core.data.compacted import Compacted
from session_core.data.message import StoredMessage, file_parts
from session_core.turns.event_log import Ended, Failed, LoggedEvent
from session_core.turns.sessions import Sessions, SessionsOfUsers
from session_core.turns.turn import Overloaded, Role, Turn
from session_core.turns.turn_request import TurnRefused, TurnRequest
from session_core.web.errors import error_response
from session_core.web.settings import Settings
from session_core.web.shown_turn import ShownTurn, without_reasoning
from storage import Session, SessionBusy, SessionNotFound, StorageUnavailable

_BLOCK_BYTES = 1 << 16  # of events in one write, which is also what a client that stops reading holds up
_ENDING_SECONDS = 5.0  # for which a retry of a closed completion waits for the end of a turn that is being ended
_LOOK_SECONDS = 1.0  # between two looks whether a silent client has left

DONE = b"data: [DONE]\n\n"  # the frame behind the last one, where a dialect has it

# Gives text; to_json gives bytes, and takes twice as long.
encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def sse_data(text: str) -> bytes:
    """A JSON text as one frame of a stream. What some clients take for the end of a line is escaped."""
    if not text.isascii():
        text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").replace("\x85", "\\u0085")
    return f"data: {text}\n\n".encode()


class Renderer(Protocol):
    """Makes the frames of a dialect from the events of one turn."""

    headers: ClassVar[Mapping[str, str]] = {}  # of the stream
    comment: bytes  # while the turn is silent
    broken_off: bytes = b""  # where the turn can be followed no more, and a client cannot take the stream up again

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

    Each turn that is started or replayed takes one of `settings.max_responses` places, and each client that reads a
    turn which another one has started one of `settings.max_watchers`, so that plain requests always find a free
    thread, and a new turn a free place.

    `one_shot` are the sessions of requests that store nothing. `max_file_bytes` is the size of the largest picture or
    file that a request may have. `keep_alive` is after how many seconds of silence a stream has a comment.
    """

    def __init__(self, sessions_of_users: SessionsOfUsers, one_shot: Sessions, settings: Settings) -> None:
        self.one_shot = one_shot
        self.max_file_bytes = settings.max_file_bytes
        self._sessions_of_users = sessions_of_users
        self._show_reasoning = settings.show_reasoning
        self.keep_alive = settings.keep_alive
        self._responses = threading.BoundedSemaphore(settings.max_responses)
        self._watchers = threading.BoundedSemaphore(settings.max_watchers)

    @property
    def sessions(self) -> Sessions:
        """The sessions of the user who asks."""
        return self._sessions_of_users.of(g.get("user", ""))

    def start(
        self, session_id: str, asked: TurnRequest, *, keeps_running: bool = True, sessions: Sessions | None = None
    ) -> TurnReader:
        """Reads the turn that a request asks for. Raises what `Turns.start` raises.

        A turn that starts is cancelled when nobody reads it any more, unless it, or a request that joins it, wants it
        to run on (`keeps_running`).
        """
        sessions = sessions or self.sessions
        sessions.models.check(asked.model)
        with contextlib.ExitStack() as stack:
            admit = functools.cache(functools.partial(_take_place, self._responses, stack))  # once, in several tries
            turn, replayed = sessions.start(session_id, asked, admit=admit, observer=g.observed)
            headers = {"Idempotency-Replayed": "true"} if replayed else {}
            return self._read(
                turn, headers, stack, "first" if turn.request is asked else "joined", keeps_running=keeps_running
            )

    def finish(self, session_id: str, asked: TurnRequest) -> None:
        """Waits for the end of the turn that a request asks for, which is to come before what it asks for beside
        that. Raises what `Turns.start` raises."""
        with contextlib.closing(self.start(session_id, asked)) as reader:
            reader.turn.result()

    def start_one_shot(
        self, messages: Sequence[StoredMessage], asked: TurnRequest, compacted: Compacted | None = None
    ) -> TurnReader:
        """Reads a turn in a session in memory with these messages, which goes with its answer. `compacted` is a
        summary of the older ones."""
        if any("media_type" not in part for message in messages for part in file_parts(message["content"])):
            raise TurnRefused("A request without a session must have the data of its pictures and files.")
        session_id = self.one_shot.create(messages, files=asked.files, compacted=compacted)
        asked.files.clear()

        def forget() -> None:
            with contextlib.suppress(SessionNotFound):
                self.one_shot.delete(session_id)

        with contextlib.ExitStack() as stack:
            stack.callback(forget)
            reader = self.start(session_id, asked, keeps_running=False, sessions=self.one_shot)
            stack.callback(reader.close)
            return dataclasses.replace(reader, close=stack.pop_all().close)

    def join(self, turn: Turn) -> TurnReader:
        """Reads a turn that another request asked for, on behalf of a client that asks for the same."""
        with contextlib.ExitStack() as stack:
            return self._read(turn, {}, stack, "joined", keeps_running=False)

    def watch(
        self, turn: Turn | None, index: Callable[[Turn | None], int], renderer: Callable[[Turn], Renderer]
    ) -> Response:
        """A stream of the events behind the first `index(turn)` ones. 204 where none comes."""
        with contextlib.ExitStack() as stack:
            slot = self._watchers.acquire(blocking=False)
            if slot:
                stack.callback(self._watchers.release)
            elif turn is not None and not turn.ended:
                raise Overloaded  # before `index`, which may wait for an event of another process
            shown = turn and self.show(turn)
            after = index(shown)
            if turn is None or shown is None or (turn.ended and not shown.read(after, 0)):
                return Response(status=204)
            if not slot:
                raise Overloaded
            reader = self._read(turn, {}, stack, "watching", keeps_running=None)
            return self.stream(dataclasses.replace(reader, turn=shown), renderer(shown), after)

    def watch_queued(self, blocks: Iterator[bytes]) -> Response:
        """A stream of these blocks, which takes the place of one that watches."""
        with contextlib.ExitStack() as stack:
            _take_place(self._watchers, stack)
            response = event_stream(blocks, {})
            response.call_on_close(stack.pop_all().close)
            return response

    def show(self, turn: Turn) -> Turn:
        """The turn as callers see it. For one reader."""
        return turn if self._show_reasoning else ShownTurn(turn)

    def session(self, session_id: str) -> Session:
        """The session as callers see it. Raises what `Sessions.session` raises."""
        session = self.sessions.session(session_id)
        return session if self._show_reasoning else without_reasoning(session)

    def stream(self, reader: TurnReader, renderer: Renderer, after: int = 0) -> Response:
        """The turn's events behind the first `after` ones, as they come, until the last."""
        response = event_stream(
            event_blocks(reader.turn, after, renderer, self.keep_alive, self._client_left(reader.turn)),
            {**reader.headers, **renderer.headers},
        )
        response.call_on_close(reader.close)
        return response

    def fail_early(self, reader: TurnReader, after: int, seconds: float) -> Response | None:
        """The error that ends the turn, where it comes behind the first `after` events within so many seconds."""
        with contextlib.ExitStack() as stack:
            stack.callback(reader.close)
            entries = reader.turn.read(after, seconds)
            if entries and isinstance(entries[0].event, Failed):
                return _failed(reader, entries[0].event)
            stack.pop_all()
        return None

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
            return _failed(reader, last)
        response = render(turn, last)
        response.headers.update(reader.headers)
        return response

    def _read(
        self,
        turn: Turn,
        headers: Mapping[str, str],
        stack: contextlib.ExitStack,
        role: Role,
        *,
        keeps_running: bool | None,
    ) -> TurnReader:
        """A reader of the turn. Its `close` is that of what the stack holds.

        A client that joins takes a place beside the one that started the turn: of an ended one, the same as for that.
        """
        if role == "joined":
            _take_place(self._responses if turn.ended else self._watchers, stack)
        if role == "watching" or not turn.ended:
            turn.readers.add(role, keeps_running=keeps_running)
            stack.callback(turn.leave, role)
            if turn.tell_readers() and role == "joined" and not keeps_running:  # it may be cancelled, and go on then
                turn.wait(_ENDING_SECONDS)
                raise SessionBusy(turn.session_id)
        return TurnReader(self.show(turn), headers, stack.pop_all().close)

    def _client_left(self, turn: Turn) -> Callable[[], bool] | None:
        """A function that tells whether the client of this request has left, where that is of interest and the WSGI
        server tells it."""
        left: Callable[[], bool] | None = request.environ.get("waitress.client_disconnected")
        return left if turn.readers.may_end_it else None


def event_stream(blocks: Iterator[bytes], headers: Mapping[str, str], status: int = 200) -> Response:
    """A response of these frames."""
    return Response(
        blocks,
        status,
        {**headers, "Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"},
        content_type="text/event-stream; charset=utf-8",
    )


def _take_place(places: threading.BoundedSemaphore, stack: contextlib.ExitStack) -> None:
    """Takes a place, which the stack gives back. Raises Overloaded where none is free."""
    if not places.acquire(blocking=False):
        raise Overloaded
    stack.callback(places.release)


def _failed(reader: TurnReader, last: Failed) -> Response:
    retry_after = {} if last.retry_after is None else {"Retry-After": last.retry_after}
    return error_response(last.code, last.text, {**reader.headers, **retry_after})


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
