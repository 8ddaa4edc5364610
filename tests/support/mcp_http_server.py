"""An MCP server at an address, in plain Python, that can misbehave."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self
from uuid import uuid4


class Refusal(NamedTuple):
    """What the server answers to a session that it does not know."""

    status: int
    content_type: str
    body: str


class McpHttpServer:
    """Speaks the older protocol, with sessions, at `url`. Its tool `raw` answers with a body as it stands, and the
    type `content_type`. With `redirect`, `/mcp` is answered with that status, and `/mcp/` is the address."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.greetings = 0
        self.refusal = Refusal(404, "text/plain", "")
        self.redirect = 0
        self.location = "/mcp/"
        self.traces: list[str | None] = []  # of the calls: the header that says to which trace each belongs
        self._httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._httpd.server_port}/mcp"

    def __enter__(self) -> Self:
        threading.Thread(target=self._httpd.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()


def _handler(server: McpHttpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            session = self.headers.get("Mcp-Session-Id")
            if server.redirect and self.path == "/mcp":
                self.answer(server.redirect, "text/plain", "Moved", {"Location": server.location})
            elif message["method"] == "initialize":
                server.greetings += 1
                server.sessions.add(session := uuid4().hex)
                version = message["params"]["protocolVersion"]
                info = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "http"}}
                self.result(message["id"], info, {"Mcp-Session-Id": session})
            elif message["method"] == "server/discover":
                error = {"code": -32601, "message": "Method not found"}
                body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "error": error})
                self.answer(400, "application/json", body)
            elif session not in server.sessions:
                self.answer(*server.refusal)
            elif "id" not in message:
                self.answer(202, "text/plain", "")
            elif message["method"] == "tools/list":
                self.result(message["id"], {"tools": [{"name": "raw"}]})
            else:
                server.traces.append(self.headers.get("traceparent"))
                given = message["params"]["arguments"]
                body = given["body"].replace("$ID", json.dumps(message["id"]))
                self.answer(given.get("status", 200), given.get("content_type", "application/json"), body)

        def do_GET(self) -> None:
            self.answer(405, "text/plain", "")

        def do_DELETE(self) -> None:
            self.answer(200, "text/plain", "")

        def result(self, id: object, result: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            body = json.dumps({"jsonrpc": "2.0", "id": id, "result": result})
            self.answer(200, "application/json", body, headers)

        def answer(self, status: int, content_type: str, body: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": content_type, **(headers or {})}.items():
                self.send_header(name, value)
            data = body.encode("utf-8", "surrogatepass")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    return Handler
