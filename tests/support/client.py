"""The app in the test's own process: Flask over a scripted model, and a client that talks to it.

    with Client(answer("Hello"), storage=FileStorage.open(...), timeout=5) as client:
        session_id = client.create()
        stream = client.stream(session_id, "Hi")
        assert stream.next()["type"] == "stream_start"
        assert client.model.requests[0]["messages"][-1]["content"] == "Hi"

At the end of the `with` the app is shut down, and everything that it started must have ended; of several apps at the
same time, when the last is closed.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from werkzeug.test import TestResponse

from agent import Agent
from calculator import calculator
from session_core.stores.files import FileStorage
from session_core.web.errors import ERRORS
from session_server import Settings, create_app
from storage import LockedSession, MemoryStorage, Storage, StorageUnavailable
from tests.support.model_server import ModelServer, ReplyTo
from tests.support.server import TIMEOUT, wait_until

T = TypeVar("T")
KEY = "sk-the-key-of-the-tests-0123456789"


class Client:
    """The app over a model server, its own where none is given, and requests to it. `headers` are sent with every
    one."""

    _alive: ClassVar[set[Client]] = set()
    _threads: ClassVar[set[threading.Thread]] = set()  # that were there before

    def __init__(
        self,
        *replies: ReplyTo,
        default: ReplyTo | None = None,
        model: ModelServer | None = None,
        storage: Storage | None = None,
        tools: Sequence[Callable[..., Any]] = (calculator,),
        base_url: str | None = None,
        headers: Mapping[str, str] | None = None,
        model_name: str = Settings.model,
        **settings: Any,
    ) -> None:
        if not Client._alive:
            Client._threads = set(threading.enumerate())
        Client._alive.add(self)
        self.model = model or ModelServer(*replies, default=default).start()
        self._stop_model: Callable[[], object] = (lambda: None) if model else self.model.stop
        self.storage = storage or MemoryStorage()
        self.settings = Settings(
            **{
                "timeout": 60.0,
                "keep_alive": 0.5,
                "api_key": KEY,
                "system_prompt": "",
                "model": model_name,
                **settings,
            }
        )
        self.agent = Agent(
            api_key=self.settings.api_key,
            base_url=base_url or self.model.base_url,
            model=self.settings.model,
            stream=self.settings.stream,
            system_prompt=self.settings.system_prompt,
            tools=tools,
            max_history=self.settings.max_history,
            max_file_bytes=self.settings.max_file_bytes,
            compact_at=self.settings.compact_at,
            timeout=self.settings.timeout,
            options=self.settings.model_options,
        )
        self.app = create_app(self.storage, self.agent, self.settings)
        self.headers = dict(headers or {})
        self._others = ThreadPoolExecutor(32)

    def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, **more: Any
    ) -> TestResponse:
        """One request and its whole answer. The body is sent as JSON, or as it stands if it is bytes."""
        return self._open(method, path, body, headers, buffered=True, **more)

    def get(self, path: str, **headers: str) -> TestResponse:
        return self.request("GET", path, headers=_named(headers))

    def create(self) -> str:
        response = self.request("POST", "/sessions")
        assert response.status_code == 201, response.text
        session_id: str = json_of(response)["id"]
        return session_id

    def run(self, session_id: str, message: str = "Hi", **headers: str) -> TestResponse:
        """A turn, when it is over. `Idempotency_Key="k"` sends that header."""
        return self.request("POST", f"/sessions/{session_id}/run", {"message": message}, _named(headers))

    def stream(self, session_id: str, message: str = "Hi", **headers: str) -> Stream:
        """A turn, as it comes."""
        path = f"/sessions/{session_id}/run_stream"
        return Stream(self._open("POST", path, {"message": message}, _named(headers)))

    def watch(self, session_id: str, query: str = "", **headers: str) -> Stream:
        """The turn that runs or has just ended."""
        return Stream(self._open("GET", f"/sessions/{session_id}/run_stream{query}", None, _named(headers)))

    def cancel(self, session_id: str) -> bool:
        response = self.request("POST", f"/sessions/{session_id}/cancel")
        assert response.status_code == 200, response.text
        cancelled: bool = json_of(response)["cancelled"]
        return cancelled

    def session(self, session_id: str) -> dict[str, Any]:
        response = self.get(f"/sessions/{session_id}")
        assert response.status_code == 200, response.text
        session: dict[str, Any] = json_of(response)
        return session

    def messages(self, session_id: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = self.session(session_id)["messages"]
        return messages

    def later(self, do: Callable[..., T], *arguments: Any, **named: Any) -> Future[T]:
        """The same on another thread: `.result(PATIENCE)` waits for it."""
        return self._others.submit(do, *arguments, **named)

    def shut_down(self, grace: float = 0.0) -> None:
        self.app.extensions["turns"].shut_down(grace)

    def close(self) -> None:
        """End all that was started, and wait for it. May be repeated."""
        if self not in Client._alive:
            return
        self.shut_down()
        self.agent.close()
        self._stop_model()
        self._others.shutdown()
        self.storage.flush()  # else its thread waits for more
        Client._alive.discard(self)
        for thread in set(threading.enumerate()) - Client._threads if not Client._alive else ():
            wait_until(lambda thread=thread: _has_ended(thread))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(
        self, method: str, path: str, body: object, headers: Mapping[str, str] | None, **more: Any
    ) -> TestResponse:
        sent = {**self.headers, **(headers or {})}
        if body is not None:
            more["data"] = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        return self.app.test_client().open(path, method=method, headers=sent, **more)


class Stream:
    """The answer to `run_stream`: `status`, `headers`, and its events as they come.

    Each write is checked to be whole frames of the promised form.
    """

    def __init__(self, response: TestResponse) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self._response = response
        self._writes = iter(response.response)
        self._waiting: list[dict[str, Any]] = []

    def write(self) -> bytes:
        """What the app sends next, in one piece; nothing after the end."""
        return next(self._writes, b"")  # type: ignore[return-value]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The events that have not been read yet, until the end."""
        give_up = time.monotonic() + TIMEOUT
        while self._waiting or (write := self.write()):
            if not self._waiting:
                self._waiting = events_of(write)
            while self._waiting:
                yield self._waiting.pop(0)
            assert time.monotonic() < give_up, "the stream does not end"
        self.close()

    def next(self, kind: str | None = None) -> dict[str, Any]:
        """The next event, of this type if one is given."""
        return next(event for event in self if kind in (None, event["type"]))

    def rest(self) -> list[dict[str, Any]]:
        """The events to the end."""
        return list(self)

    def last(self) -> dict[str, Any]:
        """The last event."""
        return self.rest()[-1]

    @property
    def json(self) -> Any:
        """The body of an answer that is no stream."""
        body = b"".join(iter(self.write, b""))
        self.close()
        return json.loads(body)

    def close(self) -> None:
        """Go away; what was sent is lost."""
        self._response.close()


def events_of(frames: bytes) -> list[dict[str, Any]]:
    """The events in whole frames, which must have the promised form."""
    events = []
    for frame in re.findall(r"(?s).+?\n\n|.+$", frames.decode()):
        if frame == ": keep-alive\n\n":
            continue
        form = re.fullmatch(r"(?:id: (\S+)\n)?data: ([^\n]+)\n\n", frame)
        assert form, frame
        events.append(json.loads(form[2]))
        assert form[1] in (None, events[-1]["id"])
    return events


def json_of(response: TestResponse) -> Any:
    assert response.headers["Content-Type"] == "application/json", response.text
    return json.loads(response.data.decode())


def error_of(response: TestResponse) -> tuple[int, str]:
    """Status and code of an error, which must have the form of one: that of OpenAI's API below `/v1`, a sentence
    below `/ui`, which the AI SDK shows as it is."""
    if response.request.path.startswith("/ui/"):
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
        return response.status_code, code_of(response.status_code, response.text)
    body = json_of(response)
    if response.request.path.startswith("/v1/"):
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}, body
        body = {"error": body["error"]["message"], "code": body["error"]["code"]}
    assert set(body) == {"error", "code"} and isinstance(body["error"], str), body
    return response.status_code, body["code"]


def code_of(status: int, sentence: str) -> str:
    """The code of an error that is told by its sentence alone."""
    assert re.fullmatch(r"\w.*(\.| not found)", sentence), sentence
    codes = [code for code, (of_code, _) in ERRORS.items() if of_code == status]
    words = {"not found": "session_not_found", **{text: code for code, (_, text) in ERRORS.items()}}
    return next((code for text, code in words.items() if text in sentence and code in codes), codes[0])


def storages(directory: Path) -> dict[str, Callable[[], Storage]]:
    """Each back end by its name, for `pytest.mark.parametrize`."""
    return {"memory": MemoryStorage, "files": lambda: FileStorage.open(str(directory / "sessions"))}


class BreakableStorage(MemoryStorage):
    """A store that can be written until it is `broken`, and reads all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False

    def check(self) -> None:
        if self.broken:
            raise StorageUnavailable("/srv/sessions is full")

    def _lock(self, session_id: str, turn: bool) -> LockedSession | None:
        locked = super()._lock(session_id, turn)
        if locked is not None:
            append = locked._append

            def append_if_it_can(*arguments: Any) -> None:
                self.check()
                append(*arguments)

            locked._append = append_if_it_can  # type: ignore[assignment, method-assign]
        return locked


def _has_ended(thread: threading.Thread) -> bool:
    """Whether the thread has ended, after a short wait. `threading.enumerate` also gives threads that will start."""
    try:
        thread.join(0.1)
    except RuntimeError:  # not started yet
        return False
    return not thread.is_alive()


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
