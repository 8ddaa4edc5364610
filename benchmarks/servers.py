"""Other ways to do the same job, to be measured beside ours: `python -m benchmarks.servers <name> <base_url>`.

- `floor` only passes the model's bytes through, in a Flask view on the same WSGI server: hardly any server of this
  kind can be faster;
- `flask` is a plain Flask view over the SDK's typed stream;
- `fastapi` is the same with FastAPI, uvicorn and the async SDK.

All keep sessions in memory, and none of them has tools, resuming, cancelling, or anything durable.
"""

import http.client
import json
import secrets
import socket
import sys
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from flask import Flask, Response, request
from waitress.server import create_server

from benchmarks.processes import allow_many_files

History = list[Any]
_THREADS = 1100  # enough for every load that is measured


def _listen() -> socket.socket:
    allow_many_files()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    return listener


def _announce(listener: socket.socket) -> None:
    print(f"listens on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)


def _chunk(text: str, sequence: int) -> str:
    return f"data: {json.dumps({'type': 'stream_chunk', 'data': {'content': text, 'sequence': sequence}})}\n\n"


def _end(text: str) -> str:
    return f"data: {json.dumps({'type': 'stream_end', 'data': {'complete_text': text}})}\n\n"


def floor(base_url: str) -> None:
    """Bytes from the model to the client."""
    app = Flask(__name__)
    model = urllib.parse.urlsplit(base_url)

    @app.post("/sessions")
    def create() -> dict[str, str]:
        return {"id": f"session-{secrets.token_hex(16)}"}

    @app.post("/sessions/<session_id>/run_stream")
    def run_stream(session_id: str) -> Response:
        connection = http.client.HTTPConnection(model.hostname or "", model.port)
        connection.request("POST", f"{model.path}/chat/completions", request.get_data())
        answer = connection.getresponse()

        def parts() -> Iterator[bytes]:
            while part := answer.read1(1 << 16):
                yield part

        return Response(parts(), content_type="text/event-stream")

    _serve_with_waitress(app)


def flask(base_url: str) -> None:
    """Flask, waitress and the SDK's typed stream."""
    import openai

    app = Flask(__name__)
    client = openai.OpenAI(api_key="none", base_url=base_url)
    sessions: dict[str, History] = {}

    @app.post("/sessions")
    def create() -> dict[str, str]:
        session_id = f"session-{secrets.token_hex(16)}"
        sessions[session_id] = request.get_json().get("messages", [])
        return {"id": session_id}

    @app.post("/sessions/<session_id>/run_stream")
    def run_stream(session_id: str) -> Response:
        history = sessions[session_id]
        history.append({"role": "user", "content": request.get_json()["message"]})

        def frames() -> Iterator[str]:
            texts: list[str] = []
            for chunk in client.chat.completions.create(model="m", messages=history, stream=True):
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    texts.append(text)
                    yield _chunk(text, len(texts))
            history.append({"role": "assistant", "content": "".join(texts)})
            yield _end("".join(texts))

        return Response(frames(), content_type="text/event-stream")

    _serve_with_waitress(app)


def _serve_with_waitress(app: Flask) -> None:
    listener = _listen()
    server = create_server(
        app,
        sockets=[listener],
        threads=_THREADS,
        connection_limit=3000,
        asyncore_use_poll=True,
        channel_request_lookahead=1,
        outbuf_high_watermark=1 << 20,
    )
    _announce(listener)
    server.run()


def fastapi(base_url: str) -> None:
    """FastAPI, uvicorn and the async SDK's typed stream."""
    import openai
    import uvicorn
    from fastapi import Body, FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()
    client = openai.AsyncOpenAI(api_key="none", base_url=base_url)
    sessions: dict[str, History] = {}

    @app.post("/sessions")
    async def create(body: dict[str, Any]) -> dict[str, str]:
        session_id = f"session-{secrets.token_hex(16)}"
        sessions[session_id] = body.get("messages", [])
        return {"id": session_id}

    @app.post("/sessions/{session_id}/run_stream")
    async def run_stream(session_id: str, message: str = Body(embed=True)) -> StreamingResponse:
        history = sessions[session_id]
        history.append({"role": "user", "content": message})

        async def frames() -> AsyncIterator[str]:
            texts: list[str] = []
            async for chunk in await client.chat.completions.create(model="m", messages=history, stream=True):
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    texts.append(text)
                    yield _chunk(text, len(texts))
            history.append({"role": "assistant", "content": "".join(texts)})
            yield _end("".join(texts))

        return StreamingResponse(frames(), media_type="text/event-stream")

    listener = _listen()
    _announce(listener)
    uvicorn.Server(uvicorn.Config(app)).run(sockets=[listener])


SERVERS: dict[str, Callable[[str], None]] = {"floor": floor, "flask": flask, "fastapi": fastapi}


if __name__ == "__main__":
    SERVERS[sys.argv[1]](sys.argv[2])
